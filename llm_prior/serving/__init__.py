"""Writing of texts by vLLM (Kwon et al. 2023, arXiv 2309.06180), for large priors.

vLLM pins another transformers than this package, so it lives in an environment of its own:

- `environment` finds that environment and checks it and the model, without torch;
- `client` stands in for the weights in this process: it starts the server and talks to it;
- `server` runs in the other environment, with the files of this package, and speaks one JSON
  object a line;
- `processor` is the logits processor inside vLLM: it draws each token by the grammar with `rows`.

The random numbers come with the request, and the processor draws with them by
`llm_prior.drawing`, as the plain engine does. An answer is therefore that of the plain engine, up
to the rounding of the logits.
"""
