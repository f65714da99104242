"""Write the bundled template library: the training split of MP-20 as compact records.

    python tools/make_templates.py ../shared/data/mp20/train.parquet

`flowllm templates build` makes a library from other data in the same way.
"""

from __future__ import annotations

from pathlib import Path

import click

from flowllm.crystals.io import read
from flowllm.templates.library import BUNDLED, TemplateLibrary

SOURCE = (
    "Materials Project (Jain et al. 2013, APL Materials 1, 011002), training split of MP-20 "
    "(Xie et al. 2021, arXiv 2110.06197)"
)


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
def main(data: Path) -> None:
    """Write the library of the crystals of DATA."""
    library = TemplateLibrary.build(
        read(data, skip_invalid=True), source=SOURCE, licence="CC BY 4.0", skip_invalid=True
    )
    library.write(BUNDLED)
    click.echo(f"{len(library)} templates, {BUNDLED.stat().st_size / 1e6:.2f} MB in {BUNDLED}")


if __name__ == "__main__":
    main()
