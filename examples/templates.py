"""Propose structures of a formula from known crystals with other elements; loads no model."""

from flowllm import write
from flowllm.templates.proposals import propose_templates


def main(formula: str = "LiCoO2", n: int = 5) -> None:
    proposals = propose_templates(formula, n=n)
    for proposal in proposals:
        probability = 2.718281828**proposal.log_probability
        print(f"{proposal.rank}  {probability:6.1%}  {proposal.template:12}  {proposal.gene}")
    write([proposal.structure for proposal in proposals], "templates.extxyz", overwrite=True)


if __name__ == "__main__":
    main()
