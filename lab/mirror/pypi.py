"""Python's simple index (PEP 503) for lab hosts: several indexes merged, every link pointing to the mirror."""

import html
import json
import re
import threading
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from lab.mirror.passthrough import Cache, UpstreamError

MAX_AGE = 600.0
"""Seconds before an index page is revalidated."""
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_HASH_ALGORITHMS = ("sha256", "sha512", "sha384", "md5")


@dataclass(frozen=True)
class Link:
    """A file of a project: its URL and attributes in the index."""

    filename: str
    url: str
    fragment: str = ""
    """`sha256=…`, if the index has a hash."""
    attributes: tuple[tuple[str, str], ...] = ()


def normalise(name: str) -> str:
    """Return a project's normalized name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _Page(HTMLParser):
    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base
        self.links: list[Link] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "base" and "href" in values:
            self._base = urljoin(self._base, values["href"])
        if tag != "a" or "href" not in values:
            return
        url, fragment = urldefrag(urljoin(self._base, values["href"]))
        filename = unquote(urlsplit(url).path.rpartition("/")[2])
        kept = tuple((name, value) for name, value in values.items() if name.startswith("data-"))
        if filename:
            self.links.append(Link(filename, url, fragment, kept))


def parse_html(text: str, base: str) -> list[Link]:
    """Return the links of an HTML index page; `base` is the page's URL."""
    page = _Page(base)
    page.feed(text)
    return page.links


def parse_json(text: str, base: str) -> list[Link]:
    """Return the links of a JSON index page (PEP 691)."""
    links = []
    for file in json.loads(text)["files"]:
        hashes = file.get("hashes", {})
        fragment = next((f"{name}={hashes[name]}" for name in _HASH_ALGORITHMS if name in hashes), "")
        attributes = []
        if file.get("requires-python"):
            attributes.append(("data-requires-python", file["requires-python"]))
        if file.get("yanked"):
            attributes.append(("data-yanked", file["yanked"] if isinstance(file["yanked"], str) else ""))
        if metadata := file.get("core-metadata"):
            value = f"sha256={metadata['sha256']}" if isinstance(metadata, dict) and "sha256" in metadata else "true"
            attributes.append(("data-core-metadata", value))
        links.append(Link(file["filename"], urljoin(base, file["url"]), fragment, tuple(attributes)))
    return links


def render(project: str, links: list[Link], prefix: str) -> str:
    """Return the index page for lab hosts, with files at `prefix`/PROJECT/FILE."""
    lines = []
    for link in links:
        target = f"{prefix}/{project}/{quote(link.filename)}" + (f"#{link.fragment}" if link.fragment else "")
        attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in link.attributes)
        lines.append(f'<a href="{html.escape(target)}"{attributes}>{html.escape(link.filename)}</a><br>')
    head = f'<meta name="pypi:repository-version" content="1.0"><title>Links for {project}</title>'
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>\n" + "\n".join(lines) + "\n</body></html>\n"


class Index:
    """Several upstream indexes as one. Files of `file:` indexes are read from disk, others through the cache."""

    def __init__(self, indexes: tuple[str, ...], cache: Cache) -> None:
        self._indexes = indexes
        self._cache = cache
        self._known: dict[str, dict[str, Link]] = {}
        self._lock = threading.Lock()

    def links(self, project: str) -> list[Link]:
        """Return a project's files; the first index that has a name wins.

        Raises UpstreamError when no index has the project or none answers.
        """
        found: dict[str, Link] = {}
        errors = []
        for number, index in enumerate(self._indexes):
            try:
                for link in self._page(number, f"{index}/{project}/", project):
                    found.setdefault(link.filename, link)
            except UpstreamError as error:
                errors.append(error)
        if not found:
            worst = max(errors, key=lambda error: error.status, default=UpstreamError(404, f"no project {project}"))
            raise worst
        with self._lock:
            self._known[project] = found
        return list(found.values())

    def _page(self, number: int, url: str, project: str) -> list[Link]:
        if urlsplit(url).scheme == "file":
            path = Path(unquote(urlsplit(url).path)) / "index.html"
            if not path.is_file():
                raise UpstreamError(404, f"{path}: not there")
            return parse_html(path.read_text(), url)
        transfer = self._cache.get(f"pypi/index/{number}/{project}", url, MAX_AGE, _ACCEPT)
        text = transfer.wait().read_text()
        parse = parse_json if "json" in transfer.record.content_type else parse_html
        return parse(text, url)

    def find(self, project: str, filename: str) -> Link:
        """Return a project's file or its metadata (`FILE.metadata`, PEP 658). Raises UpstreamError without one."""
        with self._lock:
            known = self._known.get(project)
        if known is None or not _among(filename, known):
            known = {link.filename: link for link in self.links(project)}
        if (link := _among(filename, known)) is None:
            raise UpstreamError(404, f"{project} has no file {filename}")
        return link


def _among(filename: str, known: dict[str, Link]) -> Link | None:
    if filename in known:
        return known[filename]
    wheel = known.get(filename.removesuffix(".metadata"))
    if wheel is None or not any(name == "data-core-metadata" for name, _ in wheel.attributes):
        return None
    return Link(filename, f"{wheel.url}.metadata")
