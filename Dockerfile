# The Tachograph service:
#
#   docker build -t tachograph .
#   docker run -p 127.0.0.1:9923:9923 -p 127.0.0.1:4317:4317 -e TACHOGRAPH_TOKEN="$(openssl rand -hex 24)" -v tachograph:/data tachograph
#
# The tests check that this file fits the source tree, but they neither build nor run the image.
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY instrumentation instrumentation
COPY exporter exporter
COPY examples examples
COPY dashboards dashboards
RUN python -m venv /opt/tachograph && \
    /opt/tachograph/bin/pip install --no-cache-dir --disable-pip-version-check '.[exporter,postgres,archive,zstd,grpc,mcp]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home tachograph && install -d -o tachograph /data
COPY --from=build /opt/tachograph /opt/tachograph
ENV PATH=/opt/tachograph/bin:$PATH PYTHONUNBUFFERED=1 TACHOGRAPH_DATABASE_URL=sqlite:////data/tachograph.db
USER tachograph
WORKDIR /data
VOLUME /data
EXPOSE 9923 4317
HEALTHCHECK --interval=15s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9923/-/healthy', timeout=2)"]
ENTRYPOINT ["tachograph"]
# Beyond loopback the service requires a token: set TACHOGRAPH_TOKEN or append --token-file.
CMD ["serve", "--listen", "0.0.0.0:9923", "--otlp-grpc", "0.0.0.0:4317"]
