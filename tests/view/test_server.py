"""Only the page, only this machine, only what was named."""

from __future__ import annotations

import http.client
import json
import threading
import time

import numpy as np
import pytest

from morphogen.core.errors import InputError, OutputError
from morphogen.view import open_view, start
from morphogen.view.cache import Cache
from morphogen.view.server import ViewServer
from morphogen.view.site import PARTS, Site, script

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def view(results):
    return open_view([results / "slide.ome.tif", results / "genes.h5ad", results / "cells.geojson"])


@pytest.fixture
def server(view, tmp_path):
    running = start(view, regions=tmp_path / "regions.geojson")
    yield running
    running.stop()


def ask(server: ViewServer, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    skip = "Host" in named
    connection.putrequest(method, path, skip_host=skip)
    for name, value in named.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_the_page_and_its_parts_are_served_below_the_token(server):
    status, headers, body = ask(server, f"/{server.token}/")
    assert status == 200 and b"<title>Morphogen" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    for name, kind in PARTS.items():
        status, headers, body = ask(server, f"/{server.token}/{name}")
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
    assert len(server.token) >= 24 and server.address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("path", ["/", "/view.js", "/wrong/", "/wrong/view.js", "//", "/%2e%2e/", "/ü/"])
def test_without_the_token_nothing_is_told(server, path):
    status, _, body = ask(server, path.replace("ü", "%C3%BC"))
    assert status == 403 and b"slide" not in body
    assert ask(server, f"/{server.token}")[0] == 403
    assert ask(server, f"/{server.token}x/")[0] == 403


@pytest.mark.parametrize(
    "path",
    [
        "../conftest.py", "..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "....//view.css",
        "assets/view.css", "openseadragon.LICENSE.txt", "site.py", "tiles/0/colour/0/0_0.tif", "tiles/0/../0/0_0.jpg",
        "tiles/9/colour/0/0_0.jpg", "tiles/1/colour/0/0_0.jpg", "tiles/0/nope/0/0_0.jpg", "tiles/0/colour/99/0_0.jpg",
        "tiles/0/colour/0/-1_0.jpg", "tiles/0/colour/0/9999999_0.jpg", "points/0.f32", "values/1/0/99.f32",
        "values/1/9/0.f32", "labels/1/7.f32", "outlines/0.json", "at/1/colour/0/0.json",
        "view.js/", "view.js\\", "x" * 250,
    ],
)  # fmt: skip
def test_what_is_not_of_the_page_is_not_there(server, path):
    status, _, body = ask(server, f"/{server.token}/{path}")
    assert status == 404 and b"root:" not in body and b"Traceback" not in body


def test_addresses_that_cannot_be_are_refused(server):
    assert ask(server, f"/{server.token}/" + "x" * 400)[0] == 400
    assert ask(server, "http://127.0.0.1/")[0] == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1", "a b"]
)
def test_other_hosts_are_refused(server, host):
    """A name of a stranger may be made to point at this machine (DNS rebinding)."""
    assert ask(server, f"/{server.token}/", Host=host.format(port=server.port))[0] == 403


def test_names_of_this_machine_are_answered(server):
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert ask(server, f"/{server.token}/", Host=f"{host}:{server.port}")[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"]
)
def test_pages_of_other_sites_are_refused(server, origin):
    assert ask(server, f"/{server.token}/view.js", Origin=origin.format(port=server.port))[0] == 403
    assert ask(server, f"/{server.token}/view.js", Sec_Fetch_Site="cross-site")[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, f"/{server.token}/view.js", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


def test_a_link_to_the_page_may_be_followed_but_not_framed(server):
    """From a notebook, say: the token is in the link."""
    sent = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, f"/{server.token}/", Sec_Fetch_Dest="document", **sent)[0] == 200
    assert ask(server, f"/{server.token}/", Sec_Fetch_Dest="iframe", **sent)[0] == 403


def regions(server, body, **headers):
    own = {"Origin": f"http://127.0.0.1:{server.port}", **{k.replace("-", "_"): v for k, v in JSON.items()}}
    return ask(server, f"/{server.token}/regions.geojson", "POST", body, **{**own, **headers})


def test_regions_are_saved_and_read_again(server):
    assert json.loads(ask(server, f"/{server.token}/regions.geojson")[2])["features"] == []
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"name": "R"},
    }
    body = json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()
    status, _, answer = regions(server, body)
    assert (status, json.loads(answer)) == (200, {"saved": 1})
    assert json.loads(server.site.regions.read_text())["features"] == [feature]
    assert json.loads(ask(server, f"/{server.token}/regions.geojson")[2])["features"] == [feature]


def test_regions_are_taken_from_the_page_alone(server):
    body = b'{"type": "FeatureCollection", "features": []}'
    assert regions(server, body, Origin="http://evil.example")[0] == 403
    assert (
        ask(server, f"/{server.token}/regions.geojson", "POST", body, Content_Type="application/json")[0]
        == 403
    )
    assert regions(server, body, Content_Type="text/plain")[0] == 415
    assert regions(server, b"[" * 50_000)[0] == 400
    assert regions(server, b'{"features": 3}')[0] == 400
    own = f"http://127.0.0.1:{server.port}"
    assert (
        ask(
            server,
            f"/{server.token}/view.js",
            "POST",
            body,
            Origin=own,
            Content_Type=JSON["Content-Type"],
        )[0]
        == 404
    )
    assert not server.site.regions.exists()


def test_nothing_is_written_without_a_named_file(view):
    site = Site(view, Cache(1000))
    assert site.save("regions.geojson", b'{"type": "FeatureCollection", "features": []}').status == 403


def test_numbers_come_as_they_are(server, view):
    answer = ask(server, f"/{server.token}/values/1/1/2.f32")[2]
    assert np.array_equal(np.frombuffer(answer, "<f4"), view.spots(1).values(1, 2))
    points = np.frombuffer(ask(server, f"/{server.token}/points/1.f32")[2], "<f4").reshape(-1, 2)
    assert np.array_equal(points, view.spots(1).points)
    status, headers, tile = ask(server, f"/{server.token}/tiles/0/colour/0/0_0.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg") and tile == view.image(0).tile_bytes(
        "colour", 0, 0, 0
    )
    assert ask(server, f"/{server.token}/tiles/0/colour/0/0_0.jpg", "HEAD")[2] == b""
    assert "rgb" in json.loads(ask(server, f"/{server.token}/at/0/colour/5/5.json")[2])


def test_names_of_strangers_cannot_leave_the_script(view):
    body = script("view", {"name": "</script><script>alert(1)</script>\u2028"}).decode()
    assert "<" not in body and "\u2028" not in body
    named = Site(view, Cache(1000)).get("view.js").body
    assert b"onmouseover" in named and b"<b" not in named  # the gene's name, as text


def test_a_port_that_is_taken_is_said(server, view):
    with pytest.raises(OutputError, match=f"port {server.port}"):
        start(view, port=server.port)
    with pytest.raises(OutputError, match="cannot be used"):
        start(view, host="203.0.113.7")
    with pytest.raises(InputError, match="geojson"):
        start(view, regions="regions.txt")


def test_the_cache_is_bounded_and_makes_once():
    cache, made = Cache(1000, workers=2), []

    def make(key: int) -> bytes:
        made.append(key)
        time.sleep(0.02)
        return bytes(200)

    threads = [threading.Thread(target=lambda: cache.get(1, lambda: make(1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    for key in range(2, 12):
        cache.get(key, lambda key=key: make(key))
    assert cache.size <= 1000 and len(cache) == 5
    cache.get("large", lambda: bytes(600))
    assert cache.size <= 1000 and len(cache) == 5  # it would leave no place for others
    with pytest.raises(ZeroDivisionError):
        cache.get("bad", lambda: bytes(1 // 0))
    assert cache.get("bad", lambda: b"good") == b"good"
