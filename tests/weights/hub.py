"""A local HTTP server that stands in for the Hugging Face Hub, and a checkpoint to put on it."""

import hashlib
import re
import sys
import threading
import time
import types
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def complete_checkpoint(tensors, path, **more):
    """All that taming's Lightning leaves in a checkpoint beside the encoder, at small width."""
    config = {"ddconfig": {"ch_mult": [1, 1, 2, 2, 4]}, "n": None}
    with suppress(ImportError):  # taming's own kind of settings
        from omegaconf import OmegaConf

        config = OmegaConf.create(config)
    module = types.ModuleType("old_lightning")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    sys.modules[module.__name__] = module
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = torch.optim.Adam([weight], betas=(0.5, 0.9))
    weight.sum().backward()
    optimizer.step()
    settings = callback()
    settings.monitor, settings.folder = "val/rec_loss", path.parent
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "object": settings}},
        "optimizer_states": [optimizer.state_dict(), optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": config,
        "state_dict": {
            **tensors,
            "decoder.conv_in.weight": torch.zeros(2, 2),
            "post_quant_conv.weight": torch.zeros(2, 2),
            "loss.logvar": torch.zeros(()),
            "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(8, 3, 3, 3),
            "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
            "loss.discriminator.main.3.num_batches_tracked": torch.zeros((), dtype=torch.int64),
        },
        **more,
    }
    try:
        torch.save(content, path)
    finally:
        del sys.modules[module.__name__]
    return path


class Hub:
    """Serves bytes as `{repository}/resolve/{revision}/{file}`; counts what it is asked for.

    Attributes:
        files: content by "repository/file"; what is not in it is answered by 404.
        gets: whatever has been downloaded, by the same names.
        revisions: that were asked for, with each request.
        promised: the size that HEAD tells, where it is not the content's.
        delay: seconds before every download.
        pace: seconds between the five pieces of every download.
        silent: the method of requests, HEAD or GET, that are never answered to the end.
    """

    def __init__(self):
        self.files, self.gets, self.promised = {}, [], None
        self.delay, self.pace, self.silent, self.stopped = 0.0, 0.0, None, threading.Event()
        self.headers, self.revisions = [], []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        self.stopped.set()
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def answer(self, request, *, body):
        self.headers.append(dict(request.headers))
        if self.silent == "HEAD":
            self.stopped.wait(60)
            return
        asked = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", request.path)
        name = f"{asked[1]}/{asked[3]}" if asked else request.path
        self.revisions.append(asked[2] if asked else None)
        content = self.files.get(name)
        if content is None:
            request.send_response(404)
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        part = content[int(start[1]) :] if start else content
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("X-Linked-Size", str(self.promised or len(content)))
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if body:
            self.gets.append(name)
            time.sleep(self.delay)
            step = -(-len(part) // 5)
            for start in range(0, len(part), step):
                request.wfile.write(part[start : start + step])
                request.wfile.flush()
                time.sleep(self.pace)
                if self.silent == "GET":
                    self.stopped.wait(60)
                    return
