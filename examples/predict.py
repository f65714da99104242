"""Predict the structure of a formula, from known crystals and from the models."""

from flowllm import FlowLLM, write


def main(formula: str = "SrTiO3", n: int = 3) -> None:
    model = FlowLLM.from_pretrained()
    # With the extra [eval], potential="chgnet" relaxes the candidates and ranks by energy.
    predictions = model.predict(formula, n=n)
    for found in predictions:
        name = found.prototype or "-"
        print(
            f"{found.rank}  {found.symbol:10}  {name:12}  {found.probability:4.0%}  {found.source}"
        )
    write([found.structure for found in predictions], "predicted.extxyz", overwrite=True)


if __name__ == "__main__":
    main()
