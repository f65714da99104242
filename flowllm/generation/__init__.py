"""Generation: the composed model and its runs.

- `config`: every option of sampling and refining;
- `pipeline`: `FlowLLM`, in memory; `sampling_run`: the same into a run folder;
- `sample`, `selection`, `capabilities`: one requested crystal, the best of several candidates, and
  checks that the models can do what is requested; `precision`: that all of a run is refined in one
  number type;
- `mutation`, `infilling`, `scoring`: new crystals by element swaps, elements in place of a masked
  one, likelihoods of given crystals; `prior_input` reads what the last two need.
"""
