"""Generate cubic oxides of titanium with at most ten atoms in the cell."""

from flowllm import FlowLLM, SamplingConfig


def main(n: int = 8) -> None:
    model = FlowLLM.from_pretrained()
    request = SamplingConfig.of(
        elements="Ti,O", num_atoms="3-10", crystal_system="cubic", temperature=1.0
    )
    for sample in model.sample(n, request):
        formula = sample.structure.composition.reduced_formula if sample.structure else "-"
        print(f"{sample.id}  {formula:10}  group {sample.text.splitlines()[0]}")


if __name__ == "__main__":
    main()
