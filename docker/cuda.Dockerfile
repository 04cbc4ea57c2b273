# maskwise on NVIDIA GPUs. In a clone:  docker build . -f docker/cuda.Dockerfile --tag=maskwise-cuda
# Then, in a folder with your files:    docker run --rm --gpus all --ipc host -u "$(id -u):$(id -g)" -v "$PWD:/work" maskwise-cuda check my_texts.txt
# The wheels of torch bring CUDA; the host has the driver and NVIDIA's container toolkit.
FROM python:3.12-slim
# torch compiles kernels with it (training.compile).
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/maskwise
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ./packages/maskwise-data '.[all]'
ENV HOME=/work
WORKDIR /work
ENTRYPOINT ["maskwise"]
CMD ["--help"]
