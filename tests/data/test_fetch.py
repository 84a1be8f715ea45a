import gzip
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from meprop_bench.data.fetch import fetch
from meprop_bench.errors import ExitCode, UserError


def stored(folder):
    """The content that a reader finds, having looked that nothing else was left behind."""
    assert [path.name for path in (folder / "toy").iterdir()] == ["numbers.gz"]
    return gzip.decompress((folder / "toy/numbers.gz").read_bytes())


@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_a_sound_mirror(mirror, tmp_path, form):
    body = mirror.content if form == "plain" else mirror.packed
    seen = []
    source = mirror.source(mirror.url("file", mirror.serve(body)))
    fetched = fetch(source, tmp_path, progress=lambda file, done: seen.append((file.name, done)))
    assert fetched == [tmp_path / "toy/numbers.gz"]
    assert stored(tmp_path) == mirror.content
    assert seen == sorted(seen)
    assert seen[-1] == ("numbers", len(mirror.content))


def test_plain_and_gzip_are_stored_alike(mirror, tmp_path):
    for form, body in (("plain", mirror.content), ("gzip", mirror.packed)):
        fetch(mirror.source(mirror.url("file", mirror.serve(body))), tmp_path / form)
    assert (tmp_path / "plain/toy/numbers.gz").read_bytes() == (tmp_path / "gzip/toy/numbers.gz").read_bytes()


def test_what_is_whole_is_not_fetched_again_unless_forced(mirror, tmp_path):
    source = mirror.source(mirror.url("file", mirror.serve(mirror.packed)))
    fetch(source, tmp_path)
    assert fetch(source, tmp_path) == []
    assert len(mirror.asked) == 1
    assert len(fetch(source, tmp_path, force=True)) == 1


def test_a_damaged_file_is_replaced(mirror, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/numbers.gz").write_bytes(mirror.packed[:1000])
    fetch(mirror.source(mirror.url("file", mirror.serve(mirror.packed))), tmp_path)
    assert stored(tmp_path) == mirror.content


def test_an_interrupted_transfer_goes_on_where_it_stopped(mirror, tmp_path):
    url = mirror.url("file", mirror.serve(mirror.content, cut_after=100_000))
    fetch(mirror.source(url), tmp_path)
    assert stored(tmp_path) == mirror.content
    assert [asked for _, asked in mirror.asked] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_outlives_the_run_even_without_a_connection(mirror, tmp_path):
    cut = mirror.serve(mirror.content, cut_after=10_000)
    source = mirror.source(mirror.url("file", cut, mirror.fail(503), mirror.serve(mirror.content)))
    with pytest.raises(UserError, match="HTTP 503"):
        fetch(source, tmp_path)
    assert not (tmp_path / "toy/numbers.gz").exists()
    fetch(source, tmp_path)
    assert mirror.asked[-1] == ("/file", "bytes=10000-")
    assert stored(tmp_path) == mirror.content


def test_a_mirror_that_always_hangs_up_costs_itself_alone(mirror, tmp_path):
    broken = mirror.url("broken", mirror.serve(mirror.packed, cut_after=10))
    fetch(mirror.source(broken, mirror.url("sound", mirror.serve(mirror.packed))), tmp_path)
    assert stored(tmp_path) == mirror.content
    assert mirror.asked.count(("/sound", None)) == 1


def test_a_mirror_that_ignores_range_sends_it_all_again(mirror, tmp_path):
    cut = mirror.serve(mirror.content, cut_after=1000)
    fetch(mirror.source(mirror.url("file", cut, mirror.serve(mirror.content, resume=False))), tmp_path)
    assert stored(tmp_path) == mirror.content
    assert [asked for _, asked in mirror.asked] == [None, "bytes=1000-"]


@pytest.mark.parametrize("length", [500, 400_000], ids=["shorter", "longer than the file"])
def test_a_part_of_another_version_is_dropped(mirror, tmp_path, length):
    source = mirror.source(
        mirror.url("file", mirror.serve(bytes(400_000), cut_after=length), mirror.serve(mirror.content))
    )
    if length == 500:
        fetch(source, tmp_path)
        assert [asked for _, asked in mirror.asked] == [None, "bytes=500-", None]
    else:
        with pytest.raises(UserError, match="longer than"):
            fetch(source, tmp_path)
        fetch(source, tmp_path)
    assert stored(tmp_path) == mirror.content


@pytest.mark.parametrize(
    "fault", ["404", "wrong", "cut gzip", "short", "long", "garbage", "trailing", "hang", "drip", "file", "http"]
)
def test_the_next_mirror_serves_when_one_does_not(mirror, tmp_path, fault):
    wrong = bytes(len(mirror.content))
    answer = {
        "404": mirror.fail(404),
        "wrong": mirror.serve(wrong),
        "cut gzip": mirror.serve(mirror.packed[:-100]),
        "short": mirror.serve(mirror.content[:-1]),
        "long": mirror.serve(mirror.content + b"\0"),
        "garbage": mirror.serve(b"\x1f\x8b" + wrong),
        "trailing": mirror.serve(mirror.packed + b"more"),
        "hang": mirror.hang,
        "drip": mirror.drip,
        "file": mirror.redirect(f"file://{Path(__file__)}"),
        "http": mirror.redirect("http://example.invalid/file"),
    }[fault]
    source = mirror.source(mirror.url("faulty", answer), mirror.url("sound", mirror.serve(mirror.packed)))
    fetch(source, tmp_path, timeout=0.5 if fault in ("hang", "drip") else 5)
    assert stored(tmp_path) == mirror.content
    assert mirror.asked[-1] == ("/sound", None)


_HOSTILE = ["hang", "drip_head", "drip_fields", "drip_chunk", "trailers", "go_on"]


@pytest.mark.parametrize("manner", [*_HOSTILE, "trickle", "drip"])
def test_no_server_holds_the_line_past_the_deadline(mirror, tmp_path, manner):
    url = mirror.url("file", getattr(mirror, manner))
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch(mirror.source(url, url), tmp_path, timeout=30, deadline=0.6)
    assert time.monotonic() - begun < 5  # a limit that a hang does not meet, and no timing
    assert str(caught.value) == (
        "toy/numbers.gz was not here within the 0.6 seconds for all of toy: allow more by --deadline, or put the file "
        f"from https://example.org/toy into {tmp_path / 'toy'}"
    )
    assert caught.value.exit_code == ExitCode.USAGE
    assert list((tmp_path / "toy").iterdir()) == []


@pytest.mark.parametrize("manner", [*_HOSTILE, "redirect_with_a_long_body"])
def test_a_head_takes_no_longer_than_silence_may(mirror, tmp_path, manner):
    """However much a server has to say before it comes to the file."""
    faulty = mirror.url("faulty", getattr(mirror, manner))
    mirror.url("nowhere", getattr(mirror, manner))
    fetch(mirror.source(faulty, mirror.url("sound", mirror.serve(mirror.packed))), tmp_path, timeout=0.5)
    assert stored(tmp_path) == mirror.content


def test_a_mirror_that_trickles_leaves_the_next_its_share_of_the_time(mirror, tmp_path):
    slow = mirror.url("slow", mirror.trickle)
    fetch(mirror.source(slow, mirror.url("sound", mirror.serve(mirror.packed))), tmp_path, timeout=30, deadline=2)
    assert stored(tmp_path) == mirror.content


def test_redirects_without_end(mirror, tmp_path):
    url = mirror.url("round", mirror.redirect("round?again"))
    mirror.url("round?again", mirror.redirect("/round"))
    with pytest.raises(UserError, match="more than 5 redirects"):
        fetch(mirror.source(url), tmp_path)
    assert len(mirror.asked) == 6


@pytest.mark.parametrize("where", [None, "", "http://[", "https://a\x7fb/", "gopher://example.org/"])
def test_a_redirect_to_nowhere(mirror, tmp_path, where):
    more = {} if where is None else {"Location": where}
    url = mirror.url("moved", lambda request: mirror.send(request, 302, b"", **more))
    with pytest.raises(UserError, match=r"no mirror served .*: (HTTP 302, a redirect|URL can't contain|no host given)"):
        fetch(mirror.source(url), tmp_path)


def test_a_redirect_on_this_machine_is_followed(mirror, tmp_path):
    target = mirror.url("sound", mirror.serve(mirror.packed))
    fetch(mirror.source(mirror.url("moved", mirror.redirect(target))), tmp_path)
    assert stored(tmp_path) == mirror.content


@pytest.mark.parametrize("scheme", ["http", "file", "ftp", "data"])
def test_only_https_is_opened(mirror, tmp_path, scheme):
    url = {"file": f"file://{__file__}", "data": "data:,x"}.get(scheme, f"{scheme}://mirror.invalid/file")
    with pytest.raises(UserError, match="not an https address"):
        fetch(mirror.source(url), tmp_path)


def test_a_bomb_stops_one_byte_past_the_published_size(mirror, tmp_path):
    bomb = gzip.compress(bytes(300_000_000), 1)
    most = 0

    def progress(file, done):
        nonlocal most
        most = done

    with pytest.raises(UserError, match="longer than the published 300,000 bytes"):
        fetch(mirror.source(mirror.url("bomb", mirror.serve(bomb))), tmp_path, progress=progress)
    assert most <= len(mirror.content)
    assert list((tmp_path / "toy").iterdir()) == []


def test_a_body_without_end_stops(mirror, tmp_path):
    with pytest.raises(UserError, match="longer than"):
        fetch(mirror.source(mirror.url("flood", mirror.flood)), tmp_path)
    assert list((tmp_path / "toy").iterdir()) == []


def test_an_empty_gzip_stream_repeated_for_ever_stops(mirror, tmp_path):
    with pytest.raises(UserError, match="longer than"):
        fetch(mirror.source(mirror.url("empty", mirror.serve(gzip.compress(b"") * 50_000))), tmp_path)


def test_failure_is_one_line_that_says_what_to_do(mirror, tmp_path):
    source = mirror.source(mirror.url("gone", mirror.fail(404)), mirror.url("wrong", mirror.serve(bytes(300_000))))
    with pytest.raises(UserError) as caught:
        fetch(source, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for words in ("toy/numbers.gz", "HTTP 404", "SHA-256", "try again later", source.homepage, str(tmp_path / "toy")):
        assert words in message


def test_a_folder_that_cannot_be_written(mirror, tmp_path):
    (tmp_path / "toy").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot keep data in"):
        fetch(mirror.source(mirror.url("file", mirror.serve(mirror.packed))), tmp_path)


def test_stored_files_obey_the_umask(mirror, tmp_path):
    fetch(mirror.source(mirror.url("file", mirror.serve(mirror.packed))), tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "toy/numbers.gz").stat().st_mode) == 0o666 & ~umask


def test_two_fetches_at_once(mirror, tmp_path):
    """The second begins while the first holds the kept part and waits for the rest."""
    half = len(mirror.content) // 2
    both_here = threading.Barrier(2, timeout=10)

    def slowly(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(mirror.content)))
        request.end_headers()
        request.wfile.write(mirror.content[:half])
        both_here.wait()
        request.wfile.write(mirror.content[half:])

    source = mirror.source(mirror.url("file", slowly))
    threads = [threading.Thread(target=fetch, args=(source, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(tmp_path) == mirror.content
    assert mirror.asked == [("/file", None)] * 2


def test_importing_it_loads_no_torch():
    code = "import sys, meprop_bench.data.fetch; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
