"""The environment of the programs that a download starts: fixed, but for the host's proxies and certificates.

Of /etc/environment nothing else counts: it is written for logins.
"""

from __future__ import annotations

import re

from rigup_host import paths

FIXED = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
# As in rigup/host_config.py; a unit test compares both.
VARIABLE = re.compile(
    r"(?<!\w)(https?_proxy|no_proxy|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE)=[\"']?([^\"'\s]*)",
    re.IGNORECASE,
)


def of_host() -> dict[str, str]:
    """Return the proxies (names in lower case) and certificates in /etc/environment."""
    try:
        lines = paths.ENVIRONMENT.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = (match for line in lines if not line.lstrip().startswith("#") for match in VARIABLE.finditer(line))
    return {
        match[1].lower() if match[1].lower().endswith("_proxy") else match[1].upper(): match[2]
        for match in found
        if match[2]
    }
