"""Rows from files that may be broken: bounded memory, bad rows named, good rows kept.

    read_rows(path, rejected) -> iterator of (where, row)

`path` is a JSONL, JSON, Parquet, CSV or TSV file, or a folder of such files. `where` is `file:line` (a row number for
Parquet). What cannot be read is appended to `rejected` as (where, reason) and skipped; only a path that is not there,
or holds no such file, raises InputError. No row is ever held that is longer than `max_row_bytes`.
"""

import csv
import io
import itertools
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sandboxrl.data.errors import InputError, one_line

SUFFIXES = (".jsonl", ".jsonlines", ".ndjson", ".json", ".parquet", ".csv", ".tsv")
MAX_ROW_BYTES = 64 << 20
MAX_JSON_BYTES = 1 << 30
_CHUNK = 1 << 20
_MAX_RECORD_LINES = 10_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A row that was left out."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def read_rows(path: Path, rejected: list[Rejected], max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[str, Row]]:
    """Every readable row under `path`, in the order of the files' names."""
    for file in row_files(path):
        suffix = file.suffix.lower()
        if suffix == ".parquet":
            yield from _parquet(file, rejected)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(file, rejected, max_row_bytes, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            yield from _jsonl(file, rejected, max_row_bytes) if _is_lines(file) else _json(file, rejected)
        else:
            yield from _jsonl(file, rejected, max_row_bytes)


def row_files(path: Path) -> list[Path]:
    """The file itself, or the row files of a folder."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"{path}: no file of rows in this folder ({', '.join(SUFFIXES)})")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: not a kind of file that holds rows ({', '.join(SUFFIXES)})")
    return [path]


def bounded_lines(handle: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    r"""(line number, line without its `\n`), or None for a line over `max_bytes`, which is skipped in chunks.

    Lines end at `\n` alone: U+0085 and U+2028, at which str.splitlines also splits, occur inside real strings.
    """
    number = 0
    while line := handle.readline(max_bytes + 1):
        number += 1
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield number, line.removesuffix(b"\n")
            continue
        while (rest := handle.readline(_CHUNK)) and not rest.endswith(b"\n"):
            pass
        yield number, None


def parse_json(line: bytes) -> Any:
    """A JSON value whose strings can be written again as UTF-8. Raises ValueError that says what is wrong."""
    try:
        value = json.loads(line.decode("utf-8"))
        if b"\\ud" in line or b"\\uD" in line:  # half of a surrogate pair is valid JSON but not valid text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start}: {error.object[error.start : error.start + 4]!r})") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"not text: half of a surrogate pair ({error.object[error.start]!r})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from None
    return value


def _jsonl(file: Path, rejected: list[Rejected], max_row_bytes: int) -> Iterator[tuple[str, Row]]:
    with file.open("rb", buffering=_CHUNK) as handle:
        for number, line in bounded_lines(handle, max_row_bytes):
            where = f"{file}:{number}"
            if line is None:
                rejected.append(Rejected(where, f"the line is longer than {max_row_bytes} bytes"))
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError as error:
                rejected.append(Rejected(where, one_line(error)))
                continue
            yield from _object(where, value, rejected)


def _is_lines(file: Path) -> bool:
    """Whether a `.json` file has an object on each of its lines, as AQuA's and others' have."""
    with file.open("rb") as handle:
        first, second = (handle.readline(MAX_ROW_BYTES).strip() for _ in range(2))
    if not (first.startswith(b"{") and first.endswith(b"}") and second.startswith(b"{")):
        return False
    try:
        return isinstance(parse_json(first), dict)
    except ValueError:
        return False


def _json(file: Path, rejected: list[Rejected]) -> Iterator[tuple[str, Row]]:
    """A list of objects, such a list as `data`, or an object of objects whose keys become the field `id` where there is
    none. SQuAD's articles come as a row per question."""
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        rejected.append(
            Rejected(str(file), f"{size} bytes; a .json file is read whole, up to {MAX_JSON_BYTES}: use JSONL")
        )
        return
    try:
        value = parse_json(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        rejected.append(Rejected(str(file), one_line(error)))
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = [row for article in value["data"] for row in _paragraphs(article)]
    if isinstance(value, dict):
        value = [{"id": key, **row} if isinstance(row, dict) else row for key, row in value.items()]
    if not isinstance(value, list):
        rejected.append(Rejected(str(file), f"not a list of rows but {type(value).__name__}"))
        return
    for number, row in enumerate(value, start=1):
        yield from _object(f"{file}:{number}", row, rejected)


def _paragraphs(article: Any) -> list[Any]:
    """The questions of an article of SQuAD, each with its paragraph; any other row as it is."""
    if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
        return [article]
    parts = article["paragraphs"]
    if not all(isinstance(part, dict) and isinstance(part.get("qas"), list) for part in parts):
        return [article]
    title = str(article.get("title") or "")
    return [
        {"title": title, "context": part.get("context"), **row} if isinstance(row, dict) else row
        for part in parts
        for row in part["qas"]
    ]


def _object(where: str, value: Any, rejected: list[Rejected]) -> Iterator[tuple[str, Row]]:
    if isinstance(value, dict):
        yield where, value
    else:
        rejected.append(Rejected(where, f"not an object but {type(value).__name__}"))


def _parquet(file: Path, rejected: list[Rejected]) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    failures = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except failures as error:
        rejected.append(Rejected(str(file), f"not a Parquet file, or cut off: {one_line(error)}"))
        return
    with table:
        first = 1
        for group in range(table.num_row_groups):
            number, rows = first, table.metadata.row_group(group).num_rows
            first += rows
            try:
                for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                    for row in _batch_rows(batch):
                        if isinstance(row, UnicodeDecodeError):
                            rejected.append(Rejected(f"{file}:{number}", f"not UTF-8: {one_line(row)}"))
                        else:
                            yield f"{file}:{number}", row
                        number += 1
            except failures as error:
                where = f"{file}:{number}-{first - 1}"
                rejected.append(Rejected(where, f"unreadable from here to the end of the row group: {one_line(error)}"))


def _batch_rows(batch: Any) -> Iterator[Row | UnicodeDecodeError]:
    """The rows of an Arrow batch; instead of one that holds broken text, the error."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def _csv(file: Path, rejected: list[Rejected], max_row_bytes: int, delimiter: str) -> Iterator[tuple[str, Row]]:
    """Rows by the names in the first line. Quoted as in RFC 4180; a .tsv has no quotes and one line a row.

    A record that does not parse costs its first line alone: reading goes on with the next one, so that a quote that is
    never closed does not swallow the rest of the file.
    """
    header: list[str] = []
    with file.open("rb", buffering=_CHUNK) as handle:
        lines = bounded_lines(handle, max_row_bytes)
        waiting: deque[tuple[int, bytes | None]] = deque()
        while waiting or (waiting := deque(itertools.islice(lines, 1))):
            number, line = waiting.popleft()
            where = f"{file}:{number}"
            if line is None:
                rejected.append(Rejected(where, f"the line is longer than {max_row_bytes} bytes"))
                continue
            record = [line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line]
            taken: list[tuple[int, bytes | None]] = []
            quotes, size = line.count(b'"'), len(line)
            while delimiter == "," and quotes % 2 and size <= max_row_bytes and len(record) < _MAX_RECORD_LINES:
                more = waiting.popleft() if waiting else next(lines, None)
                if more is None:
                    break
                taken.append(more)
                if more[1] is None:
                    break
                record.append(more[1])
                quotes, size = quotes + more[1].count(b'"'), size + len(more[1])
            try:
                cells = _cells(b"\n".join(record), delimiter, max_row_bytes)
                if header and cells and len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
            except ValueError as error:
                rejected.append(Rejected(where, one_line(error)))
                waiting.extendleft(reversed(taken))
                continue
            if not header:
                header = cells
            elif any(cells):
                yield where, dict(zip(header, cells, strict=True))


def _cells(record: bytes, delimiter: str, max_bytes: int) -> list[str]:
    """The cells of one record. Raises ValueError."""
    try:
        text = record.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start} of the row)") from None
    if delimiter == "\t":
        return text.split("\t")
    csv.field_size_limit(max_bytes)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(f"broken CSV: {error}") from None
    return [cell for row in rows for cell in row]
