"""Tables as Parquet parts, written and read whole; and as Arrow files that are mapped into memory, not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from genview.errors import UserError
from genview.store.parts import appearing

Column = np.ndarray | Sequence[str] | Sequence[bytes]


def write_table(path: Path, columns: Mapping[str, Column], *, first: bool = False) -> None:
    """Write equally long columns to `path`, all or nothing. A 2-D array becomes a fixed-size list column.

    With `first`, a table that another process has written there meanwhile stays as it is.
    """
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    with appearing(path, first=first) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file, write_page_checksum=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as .npz, all or nothing; read them with `np.load(path, allow_pickle=False)`."""
    with appearing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # numpy types its own option as if it were an array


def read_table(paths: Path | Sequence[Path], columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read columns (all where None) of one part or several into a dict of arrays, strings as object arrays.

    Raises:
        UserError: there is no part, or one is missing, damaged or without a wanted column.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    if not paths:
        raise UserError("There is no table to read: the stage that writes it has not run yet.")
    tables = []
    for path in paths:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as part:
                absent = set(columns or ()) - set(part.schema_arrow.names)
                if absent:
                    raise UserError(f"{path} has no column {', '.join(sorted(absent))}: another version wrote it.")
                tables.append(part.read(columns))
        except FileNotFoundError as error:
            raise UserError(f"There is no {path}: the stage that writes it has not run yet.") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run the command again.") from error
    table = pa.concat_tables(tables)
    return {name: _numpy(table.column(name)) for name in table.column_names}


def find_rows(paths: Sequence[Path], keys: Iterable[str], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of the rows whose `key` is among `keys`, out of parts of any number; what no part has is left out.

    Raises:
        UserError: a part is damaged.
    """
    if not paths:
        return {}
    try:
        known = pq.read_schema(paths[0]).names
        chosen, wanted = [name for name in columns if name in known], pa.array([*keys], pa.string())
        table = pq.read_table(list(paths), columns=chosen, filters=pc.field("key").isin(wanted), partitioning=None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"A part in {paths[0].parent} is damaged ({error}). Delete it and run its stage again."
        ) from error
    return {name: _numpy(table.drop_null().column(name)) for name in chosen}


def write_mapped(path: Path, columns: Mapping[str, Column]) -> None:
    """Write equally long columns to `path` for `read_mapped`, all or nothing."""
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    with (
        appearing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)


def read_mapped(path: Path) -> dict[str, pa.Array]:
    """Map the columns that `write_mapped` wrote; nothing is read until it is asked for, whatever their length.

    Columns of numbers become arrays without a copy by `.to_numpy()`; a string is `column[i].as_py()`.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: the stage that writes it has not run yet.") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it and run the command again.") from error
    return {name: _whole(table.column(name)) for name in table.column_names}


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.array([], column.type)


def _arrow(values: Column) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values)


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat).reshape(len(column), column.type.list_size)
    return np.asarray(column.to_numpy(zero_copy_only=False))
