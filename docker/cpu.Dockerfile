# maskwise on processors. In a clone:  docker build . -f docker/cpu.Dockerfile --tag=maskwise
# Then, in a folder with your files:   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" maskwise check my_texts.txt
FROM python:3.11-slim
WORKDIR /opt/maskwise
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt ./packages/maskwise-data '.[all]'
# Times and downloaded models are kept in the folder of the user.
ENV HOME=/work
WORKDIR /work
ENTRYPOINT ["maskwise"]
CMD ["--help"]
