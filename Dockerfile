# docker build --tag flowllm .
# docker run --rm --volume "$PWD:/work" flowllm sample -n 16 --formula NaCl -o runs/nacl
#
# The project's tests do not build this image.
FROM python:3.11-slim

COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY configs /source/configs
COPY flowllm /source/flowllm
COPY llm_prior /source/llm_prior
COPY rfm /source/rfm
# torch first, for the CPU: another index, such as https://download.pytorch.org/whl/cu128, for a GPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --constraint /source/constraints.txt \
        --index-url ${TORCH_INDEX} torch \
    && pip install --no-cache-dir --constraint /source/constraints.txt "/source[eval]" \
    && rm -rf /source

# A user who is not root, with a cache that can be written.
RUN useradd --create-home flowllm
USER flowllm
WORKDIR /work
ENTRYPOINT ["flowllm"]
CMD ["--help"]
