"""Generate crystals of a formula, print their space groups and write them."""

from flowllm import FlowLLM, write


def main(n: int = 8, out: str = "nacl.extxyz") -> None:
    model = FlowLLM.from_pretrained()
    samples = model.sample(n, formula="NaCl", seed=0)
    for sample in samples:
        if sample.structure is None:
            print(sample.id, "failed:", sample.failure)
            continue
        symbol, number = sample.structure.get_space_group_info(symprec=0.1)
        print(sample.id, sample.structure.formula, f"{symbol} ({number})")
    write([s.structure for s in samples if s.structure is not None], out, overwrite=True)


if __name__ == "__main__":
    main()
