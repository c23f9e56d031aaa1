"""A status as text: what needs attention, tables of endpoints and GPUs, what is served where, downloads, audits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rigup.cli._status_data import HostStatus, Status
from rigup.cli._status_words import Cell, attention, audit_cell, balancer_line, endpoint_cells, gpu_cells, work_lines

# Those that fit a terminal of 80 columns.
ENDPOINT_COLUMNS = ("endpoint", "state", "tok/s", "running", "waiting", "KV cache", "since")
GPU_COLUMNS = ("GPU", "temp", "power", "memory", "busy", "slowed by", "Xid since boot")
NUMBERS = {"tok/s", "running", "waiting", "KV cache", "GPU", "temp", "power", "memory", "busy"}
STYLES = {"good": "green", "busy": "yellow", "bad": "red", "": ""}


def as_text(status: Status) -> RenderableType:
    """Return everything, for a console."""
    return Group(*_parts(status))


def _parts(status: Status) -> Iterator[RenderableType]:
    for each in attention(status):
        text = f"{each.host}: {each.what}" + (f": {each.remedy}" if each.remedy else "")
        yield Text.assemble(("! ", "bold red"), text)
    endpoints, gpus = _table(ENDPOINT_COLUMNS), _table(GPU_COLUMNS)
    for name, host in status.hosts.items():
        if host.error:
            endpoints.add_row(name, "", Text("unknown", "red"))
        elif not host.endpoints:
            endpoints.add_row(name, "", Text("nothing deployed", "yellow"))
        _add(endpoints, name, ENDPOINT_COLUMNS, [endpoint_cells(each, status.at) for each in host.endpoints])
        _add(gpus, name, GPU_COLUMNS, [gpu_cells(each, host) for each in host.gpus])
    yield endpoints
    if gpus.row_count:
        yield ""
        yield gpus
    if lines := [line for name, host in status.hosts.items() for line in _lines(name, host, status.at)]:
        yield ""
        yield from lines


def _lines(name: str, host: HostStatus, at: str) -> Iterator[Text]:
    for endpoint in host.endpoints:
        cells = endpoint_cells(endpoint, at)
        model, url, recipe = (cells[column].text for column in ("model", "URL", "recipe"))
        yield Text(f"{name}/{endpoint.name}: {model} at {url}, recipe {recipe}")
    for line in work_lines(host, at):
        yield Text(f"{name}: {line}")
    if host.balancer:
        yield Text(f"{name}: {balancer_line(host.balancer)}")
    if host.audit:
        yield Text.assemble(f"{name}: daily audit: ", _styled(audit_cell(host.audit, at)))


def _table(columns: Sequence[str]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("host", *columns):
        made.add_column(
            column,
            overflow="fold",
            no_wrap=column in ("host", "endpoint", *NUMBERS),
            justify="right" if column in NUMBERS else "left",
        )
    return made


def _add(table: Table, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> None:
    """Add the rows of one host, whose name is only in the first."""
    for at, row in enumerate(rows):
        table.add_row(name if at == 0 else "", *(_styled(row[column]) for column in columns))


def _styled(cell: Cell) -> Text:
    return Text(cell.text, STYLES[cell.level])
