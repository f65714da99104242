"""Train a small pair on your own crystals, and generate with it.

    python train.py train.parquet        # CSV, parquet, CIFs, ...: whatever flowllm reads

Two epochs teach a prior little; the recipe's 5 epochs of 27,000 crystals are where it begins.
"""

import sys

from flowllm import FlowLLM, train_prior, train_refiner
from flowllm.training.pairing.run import pair


def main(data: str, settings: tuple[str, ...] = ("training.epochs=2",)) -> None:
    prior = train_prior("llm/wyckoff", data=[data], out="prior", overrides=settings)
    pairs = pair(data, prior=prior, out="pairs", skip_invalid=True)
    # So short a training seldom hits the space group, which base.symmetry=keep needs.
    refiner = train_refiner(
        "rfm/wyckoff",
        pairs=[pairs.file],
        out="refiner",
        overrides=["training.epochs=2", "base.symmetry=free"],
    )
    model = FlowLLM.from_pretrained(prior=prior, refiner=refiner)
    for sample in model.sample(4):
        print(sample.text.replace("\n", " | "), sample.failure or "")


if __name__ == "__main__":
    main(*sys.argv[1:2])
