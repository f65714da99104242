"""Compare raw and refined crystals of one request; needs the extra [eval]."""

from flowllm import evaluate, run_sampling


def main(n: int = 32, train: str | tuple[str, ...] = ()) -> None:
    run_sampling(n, out="raw", refine=False, seed=0)
    run_sampling(n, out="refined", seed=0)
    result = evaluate(["raw", "refined"], out="comparison", train=train)
    for measured in result.sets:
        for metric in ("structural_validity", "uniqueness", "p1"):
            print(f"{measured.name:8}  {metric:20}  {measured.metrics[metric].value:.3f}")
    print(result.folder / "report.html")


if __name__ == "__main__":
    main()
