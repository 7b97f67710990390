"""Start the reranking service and call it like any client of Jina's, Cohere's or TEI's rerank API.

pip install ".[serve]"
python examples/serve_and_call.py
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--query", default="how long does a flea live")
parser.add_argument("--documents", type=Path, default=Path(__file__).parent / "fleas.jsonl")
parser.add_argument("--model", default="twolar-smollm2-135m-v2")
args = parser.parse_args()

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
address = f"http://127.0.0.1:{port}"
command = ["-m", "modeling_tsarank.cli", "serve", "--model", args.model, "--port", str(port)]
service = subprocess.Popen([sys.executable, *command])
try:
    while True:  # the port opens once the model is loaded and warmed up
        try:
            urlopen(f"{address}/health").close()
            break
        except URLError:
            if service.poll() is not None:
                sys.exit("the service did not start")
            time.sleep(0.5)

    documents = [json.loads(line) for line in args.documents.read_text(encoding="utf-8").splitlines()]
    body = {"query": args.query, "documents": documents, "top_n": 3, "return_documents": True}
    request = Request(f"{address}/v1/rerank", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as response:
        for row in json.load(response)["results"]:
            print(f"{row['relevance_score']:.2f}  {row['document']['text'][:80]}")
finally:
    service.terminate()
    service.wait()
