"""Draw several candidates of one composition and keep the likeliest."""

from flowllm import FlowLLM


def main(n: int = 4, candidates: int = 4) -> None:
    model = FlowLLM.from_pretrained()
    for sample in model.sample(n, composition="Sr1Ti1O3", best_of=candidates, seed=0):
        group = sample.text.splitlines()[0]
        score = "-" if sample.rank_score is None else f"{sample.rank_score:.1f} nats"
        print(f"{sample.id}  group {group:4} {score}")


if __name__ == "__main__":
    main()
