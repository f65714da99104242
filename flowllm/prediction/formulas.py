"""The formulas of a request: given one by one, or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flowllm.crystals.contents import decoded, decompressed, read_bytes
from flowllm.crystals.formats import Format, format_of
from flowllm.crystals.tables import csv_columns, parquet_columns
from flowllm.errors import PriorError, UserError, one_line
from llm_prior.prompts import render_formula

COLUMNS = ("formula", "composition", "pretty_formula", "formula_pretty", "reduced_formula")


def read_formulas(words: str | Path | Sequence[str | Path]) -> list[str]:
    """Return reduced formulas.

    Args:
        words: formulas, and files of them: text with a formula on each line (`#` begins a comment),
            or CSV or parquet with a column `formula`. A word that can be read as a formula is one.

    Returns:
        The formulas in order, as `llm_prior.prompts.render_formula` writes them.

    Raises:
        UserError: if a word is neither a formula nor a file, a file holds other content, there is
            no formula, or one occurs twice.
    """
    given = [words] if isinstance(words, str | Path) else list(words)
    if not given:
        raise UserError("no formula is given; give one, such as NaCl, or a file of them")
    found: dict[str, str] = {}
    for word in given:
        for place, formula in _formulas(word):
            if formula in found:
                raise UserError(
                    f"{place}: {formula} is asked for twice ({found[formula]}); give each formula "
                    "once"
                )
            found[formula] = place
    return list(found)


def _formulas(word: str | Path) -> Iterator[tuple[str, str]]:
    """Yield each formula of a word with the place where it stands."""
    try:
        yield str(word), render_formula(str(word))
        return
    except PriorError as error:
        path = Path(word)
        if not path.is_file():
            is_path = path.suffix[1:].isalpha() or "/" in str(word)
            what = f"{path}: no such file" if is_path else str(error)
            raise UserError(f"{what}; give a formula, such as NaCl, or a file of them") from error
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path}: holds no formula; write one on each line")
    for number, text in lines:
        place = f"{path}, line {number}"
        try:
            yield place, render_formula(text)
        except PriorError as error:
            raise UserError(f"{place}: {error}; correct the file") from error


def _lines(path: Path) -> list[tuple[int, str]]:
    """Return the formulas of a file as they stand there, with the numbers of their lines."""
    data = decompressed(read_bytes(path), str(path))
    kind = format_of(path.name)
    try:
        if kind in (Format.CSV, Format.PARQUET):
            if kind is Format.CSV:
                table = csv_columns(decoded(data), str(path))
            else:
                table = parquet_columns(data, str(path))
            name = next((column for column in COLUMNS if column in table), None)
            if name is None:
                raise UserError(
                    f"{path}: has no column formula, but {', '.join(table)}; rename a column"
                )
            return [(number, str(text)) for number, text in enumerate(table[name], start=2)]
        lines = decoded(data).splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {one_line(error)}; give text with a formula on each line") from (
            error
        )
    texts = [(number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    return [(number, text) for number, text in texts if text]
