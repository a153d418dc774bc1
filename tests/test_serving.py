"""A method as a model of Label Studio: its protocol, spoken by a real client over a real socket."""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import boxsup_d2
import boxsup_d2.serving
from boxsup_cli import main
from boxsup_d2.data.formats.brush_rle import decode_brush
from boxsup_d2.data.formats.label_studio import read_label_studio
from boxsup_d2.data.formats.polygons import decode_mask
from boxsup_d2.data.formats.problems import Problems
from boxsup_d2.masks.rotated_boxes import inside_rotated_box
from boxsup_d2.serving import LabelStudioBackend, TaskImages, make_server

H, W = 40, 50
# As a project has it; the names are not ours.
CONFIG = """<View><Image name="img" value="$photo"/>
<RectangleLabels name="rect" toName="img" smart="true"><Label value="cat"/><Label value="dog"/></RectangleLabels>
<BrushLabels name="brush" toName="img"><Label value="cat"/><Label value="dog"/></BrushLabels></View>"""


def region(label: str = "cat", rotation: float = 0, **fields: Any) -> dict[str, Any]:
    """A box from (10, 8) to (30, 24) as the editor sends it, in percent."""
    return {
        "original_width": W, "original_height": H, "image_rotation": 0, "id": "Ab1", "from_name": "rect",
        "to_name": "img", "type": "rectanglelabels", "origin": "manual",
        "value": {"x": 20, "y": 20, "width": 40, "height": 40, "rotation": rotation, "rectanglelabels": [label]},
        **fields,
    }  # fmt: skip


def request(*regions: dict[str, Any], photo: str = "/data/upload/1/0a1b2c3d-a.png", **fields: Any) -> dict[str, Any]:
    """What is sent when somebody draws with the smart tool."""
    return {
        "tasks": [{"id": 7, "data": {"text": "a/b", "photo": photo}, "annotations": [], "predictions": []}],
        "project": "3.1700000000",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": {"result": list(regions)}},
        **fields,
    }


def png() -> bytes:
    _, content = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    return content.tobytes()


class Served:
    """A server on a thread, and what a client gets of it."""

    def __init__(self, server: ThreadingHTTPServer):
        self.server = server
        self.url = f"http://localhost:{server.server_port}"
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def ask(self, path: str, content: Any = None) -> tuple[int, Any]:
        """Status and json; posts where there is content."""
        data = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        asked = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def model() -> Any:
    return boxsup_d2.load("box", device="cpu")


@pytest.fixture
def serve(model: Any) -> Iterator[Any]:
    """Starts servers of the filled box."""
    running = []

    def started(images: TaskImages) -> Served:
        running.append(Served(make_server(LabelStudioBackend(model, images, "v1"), "localhost", 0)))
        return running[-1]

    yield started
    for served in running:
        served.end()


def mask_of(found: dict[str, Any]) -> np.ndarray:
    assert (found["type"], found["value"]["format"]) == ("brushlabels", "rle")
    return decode_brush(found["value"]["rle"], H, W)


def test_a_drawn_box_comes_back_as_a_mask(tmp_path: Path, serve: Any) -> None:
    (tmp_path / "a.png").write_bytes(png())
    served = serve(TaskImages(str(tmp_path), "", ""))
    assert served.ask("/health") == (200, {"status": "UP", "model_class": "BoxFill"})
    assert served.ask("/setup", {"project": "3.1", "schema": CONFIG, "hostname": "", "access_token": ""}) == (
        200, {"model_version": "v1"},
    )  # fmt: skip
    assert served.ask("/versions")[1] == {"versions": ["v1"]}
    assert served.ask("/webhook", {"action": "ANNOTATION_CREATED", "task": {}})[0] == 201
    status, answer = served.ask("/predict", request(region("dog"), region("cat", rotation=30)))
    assert (status, answer["model_version"], len(answer["results"])) == (200, "v1", 1)
    box, turned = answer["results"][0]["result"]
    expected = np.zeros((H, W), bool)
    expected[8:24, 10:30] = True
    np.testing.assert_array_equal(mask_of(box), expected)
    assert (box["from_name"], box["to_name"], box["value"]["brushlabels"]) == ("brush", "img", ["dog"])
    assert (box["original_width"], box["original_height"]) == (W, H)
    assert "parentID" not in box, "the box was that of the tool"
    assert len({box["id"], turned["id"], "Ab1"}) == 3
    cos, sin = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))  # around the corner at (10, 8)
    inside = inside_rotated_box([10 + 10 * cos - 8 * sin, 8 + 10 * sin + 8 * cos, 20, 16, -30], 0, 0, H, W)
    assert (mask_of(turned) != inside).sum() <= 3
    # Nothing drawn: a task's own boxes count, and come back beside their masks, as an export is read again.
    own = {"annotations": [{"id": 1, "result": [region()]}]}
    task = request()["tasks"][0]
    status, answer = served.ask("/predict", {"tasks": [{**task, **own}, task], "label_config": CONFIG, "params": {}})
    first, second = answer["results"]
    assert [found["type"] for found in first["result"]] == ["rectanglelabels", "brushlabels"]
    assert (second["result"], status) == ([], 200)
    (joined,) = read_label_studio([{**task, "predictions": [first]}], Problems(), Problems())["annotations"]
    np.testing.assert_array_equal(decode_mask(joined, H, W), expected)
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: served.ask("/predict", request(region()))[0], range(8)))
    assert statuses == [200] * 8


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "no json"),
        (b"[1]", 400, "no json object"),
        ({"label_config": CONFIG}, 400, "no list of tasks"),
        (request(region(), label_config="<View/>"), 400, "no <BrushLabels>"),
        (request(region(), label_config="<View"), 400, "no XML"),
        (request(region("cow")), 400, "no label 'cow'"),
        (request(region(value={"x": 1})), 400, "no label or no numbers"),
        (
            request(region(value={"x": 120, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cat"]})),
            400,
            "outside",
        ),
        (request(region(), tasks=[{"id": 9, "data": {}}]), 400, "Task 9 names no image"),
        (request(region(), photo="/data/local-files/?d=../b.png"), 404, "b.png' was not found: .*--images"),
        (request(region(), photo="http://elsewhere.invalid/b.png"), 404, "was not found"),
        (request(region(), photo="damaged.png"), 400, "damaged.png"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(
    tmp_path: Path, serve: Any, content: Any, status: int, message: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    (tmp_path / "images" / "damaged.png").write_bytes(png()[:60])
    (tmp_path / "b.png").write_bytes(png())
    served = serve(TaskImages(str(tmp_path / "images"), "", ""))
    found, answer = served.ask("/predict", content)
    assert found == status, answer
    assert re.search(message, answer["error"])
    assert served.ask("/predict", request(region()))[0] == 200, "the next one is"
    assert served.ask("/nothing", {})[0] == 404
    assert served.ask("/setup", {"schema": "<View/>"})[0] == 400


class Studio(BaseHTTPRequestHandler):
    """Label Studio's side: pictures for whoever shows a token, one of them at a store of others."""

    asked: list[tuple[str, str | None]]
    store = ""

    def do_GET(self) -> None:
        key = self.headers.get("Authorization")
        self.asked.append((self.path, key))
        if self.path.startswith("/stored/"):
            self.answer(200, png())
        elif key not in ("Token abc", "Bearer access"):
            self.answer(401, b"{}")
        elif "moved" in self.path:
            self.answer(303, b"", f"{self.store}/stored/a.png")
        else:
            self.answer(200, png())

    def do_POST(self) -> None:
        refresh = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"]
        self.asked.append((self.path, refresh))
        self.answer(200, b'{"access": "access"}')

    def answer(self, status: int, content: bytes, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def test_images_come_from_label_studio_and_the_key_goes_nowhere_else(serve: Any) -> None:
    asked: list[tuple[str, str | None]] = []
    studio, store = (
        Served(ThreadingHTTPServer(("localhost", 0), type("Handler", (Studio,), {"asked": asked}))) for _ in range(2)
    )
    studio.server.RequestHandlerClass.store = store.url
    token = ".".join(base64.urlsafe_b64encode(part).decode() for part in (b'{"alg":"HS256"}', b"{}", b"x"))
    try:
        served = serve(TaskImages(None, studio.url + "/", "abc"))
        for photo in ("/data/upload/1/0a1b2c3d-ä b.png", f"{studio.url}/data/local-files/?d=x%2Fa.png", "//moved.png"):
            for _ in range(2):
                status, answer = served.ask("/predict", request(region(), photo=photo))
                assert status == 200, answer
        assert asked == [
            ("/data/upload/1/0a1b2c3d-%C3%A4%20b.png", "Token abc"),
            ("/data/local-files/?d=x%2Fa.png", "Token abc"),
            ("/moved.png", "Token abc"),
            ("/stored/a.png", None),
        ], "once each, and the store is shown no key"
        assert served.ask("/predict", request(region(), photo=f"{store.url}/stored/a.png"))[0] == 404, "another host"
        assert len(asked) == 4
        personal = serve(TaskImages(None, studio.url, token))
        assert personal.ask("/predict", request(region(), photo="/data/a.png"))[0] == 200
        assert asked[4:] == [("/api/token/refresh/", token), ("/data/a.png", "Bearer access")]
        keyless = serve(TaskImages(None, studio.url, ""))
        status, answer = keyless.ask("/predict", request(region(), photo="/data/a.png"))
        assert (status, "LABEL_STUDIO_API_KEY" in answer["error"]) == (502, True)
    finally:
        studio.end()
        store.end()


def test_command_serves_what_its_options_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new.png").write_bytes(png())
    answers = []

    class Once(ThreadingHTTPServer):
        """Answers a request, then gets Ctrl-C."""

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            served = Served(ThreadingHTTPServer(("localhost", 0), self.RequestHandlerClass))
            answers.append(served.ask("/predict", request(region(), photo="new.png")))
            served.end()
            raise KeyboardInterrupt

    def make(backend: Any, host: str, port: int) -> ThreadingHTTPServer:
        return Once((host, port), make_server(backend, host, 0).RequestHandlerClass)

    monkeypatch.setattr(boxsup_d2.serving, "make_server", make)
    line = ["serve", "--method", "box", "--device", "cpu", "--images", str(tmp_path), "--port"]
    assert main([*line, "0"]) == 0
    ((status, answer),) = answers
    assert (status, answer["model_version"]) == (200, "boxsup_d2 box")
    assert "http://localhost:" in capsys.readouterr().out
    assert main([*line, "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err
    assert main(["serve", "--images", str(tmp_path / "nowhere")]) == 2
