# CPU image of `tsarank serve`; for a GPU build with --build-arg TORCH=torch==2.13.0+cu130 or your own torch wheel.
# docker build -t tsarank . && docker run -p 8000:8000 -v tsarank-cache:/cache -v tsarank-states:/states tsarank
FROM python:3.11-slim

ARG TORCH=torch==2.13.0
WORKDIR /opt/tsarank
RUN useradd --create-home tsarank && mkdir /cache /states && chown tsarank /cache /states
RUN pip install --no-cache-dir "$TORCH"
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve]"
USER tsarank
# Models and merged releases; document states.
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"
ENTRYPOINT ["tsarank", "serve", "--host", "0.0.0.0"]
CMD ["--store", "/states"]
