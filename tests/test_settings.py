"""Flags, environment, defaults."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyflow.errors import UsageError
from comfyflow.models import PoolServer, Timeouts
from comfyflow.settings import (
    DEFAULT_URL,
    Settings,
    age,
    content_limit,
    moment,
    normalise_url,
    pool_servers,
    request_headers,
    resolve,
    shared_folder,
    without_credentials,
)

ALL = {"COMFYFLOW_URL": "http://a:1", "COMFYUI_URL": "http://b:2", "COMFYUI_HOST": "c:3"}


@pytest.mark.parametrize(
    ("flag", "env", "url"),
    [
        ("http://flag:9", ALL, "http://flag:9"),
        (None, ALL, "http://a:1"),
        (None, {**ALL, "COMFYFLOW_URL": ""}, "http://b:2"),
        (None, {**ALL, "COMFYFLOW_URL": " ", "COMFYUI_URL": ""}, "http://c:3"),
        (None, {}, DEFAULT_URL),
    ],
)
def test_the_flag_wins_then_the_variables_in_order(flag: str | None, env: dict[str, str], url: str) -> None:
    assert pool_servers(env, [] if flag is None else [flag])[0].url == url


@pytest.mark.parametrize(
    ("given_url", "url"),
    [
        ("http://127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("http://127.0.0.1:8188/", "http://127.0.0.1:8188"),
        ("  https://gpu.example.org/comfy//  ", "https://gpu.example.org/comfy"),
        ("HTTP://GPU.example.org", "http://gpu.example.org"),
        ("http://user:pa%20ss@gpu:9/x/y", "http://user:pa%20ss@gpu:9/x/y"),
        ("gpu", "http://gpu:8188"),
        ("gpu:9000", "http://gpu:9000"),
        ("gpu/base", "http://gpu:8188/base"),
        ("0.0.0.0", "http://127.0.0.1:8188"),
        ("http://0.0.0.0:8188", "http://127.0.0.1:8188"),
        ("::", "http://[::1]:8188"),
        ("fe80::1", "http://[fe80::1]:8188"),
        ("[::1]", "http://[::1]:8188"),
        ("[::1]:9", "http://[::1]:9"),
    ],
)
def test_a_url_is_made_of_what_people_write(given_url: str, url: str) -> None:
    assert normalise_url(given_url) == url


@pytest.mark.parametrize(
    ("given_url", "part"),
    [
        ("", "no host"),
        ("http://", "no host"),
        ("ftp://gpu", "scheme"),
        ("ws://gpu", "scheme"),
        ("http://gpu:0", "port"),
        ("http://gpu:99999", "port"),
        ("gpu:port", "port"),
        ("http://gpu/?x=1", "'?'"),
        ("http://gpu/#x", "'#'"),
        ("http://gp u", "spaces"),
        ("http://gpu\n.example.org", "spaces"),
        ("http:\\\\gpu", "spaces"),
        ("http://[::1", "no URL"),
    ],
)
def test_what_is_no_url_is_refused_with_its_source_and_an_example(given_url: str, part: str) -> None:
    with pytest.raises(UsageError, match=r"^COMFYUI_URL: .*8188") as caught:
        normalise_url(given_url, source="COMFYUI_URL")
    assert part in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://me:secret@gpu", "http://me:secret@gpu:x", "http://me:secret@gpu?x"])
def test_a_refusal_never_shows_the_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        pool_servers({"COMFYFLOW_URL": url})
    assert "secret" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_becomes_a_stable_url_or_a_usage_error(text: str) -> None:
    try:
        url = normalise_url(text)
    except UsageError:
        return
    assert normalise_url(url) == url
    assert url.startswith(("http://", "https://"))


def test_credentials_are_kept_for_the_client_and_hidden_from_people() -> None:
    settings = resolve({}, server="http://me:secret@gpu:1/base")
    assert settings.url == "http://me:secret@gpu:1/base"
    assert settings.shown_url == "http://gpu:1/base"
    assert "secret" not in repr(settings)
    assert without_credentials("http://gpu") == "http://gpu"


def test_headers_come_from_flags_and_the_api_key_from_the_environment() -> None:
    env = {"COMFYFLOW_API_KEY": " key "}
    assert request_headers(env, ["X-Team: a: b", "X-Empty:"]) == {
        "X-Team": "a: b",
        "X-Empty": "",
        "Authorization": "Bearer key",
    }
    assert request_headers(env, ["authorization: Basic eA=="]) == {"authorization": "Basic eA=="}
    assert request_headers({}) == {}


@pytest.mark.parametrize("line", ["no colon", ": value", "two words: x", "X: a\r\nY: b", "X: a\0secret"])
def test_a_line_that_is_no_header_is_refused_without_showing_its_value(line: str) -> None:
    with pytest.raises(UsageError, match=r"^--header") as caught:
        request_headers({}, [line])
    assert "secret" not in str(caught.value)


def test_an_api_key_with_a_line_break_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^COMFYFLOW_API_KEY"):
        request_headers({"COMFYFLOW_API_KEY": "a\nb"})


def test_without_anything_the_defaults_hold() -> None:
    assert resolve({}) == Settings()
    assert resolve({}).output == Path("comfyflow-output")
    assert resolve({}).timeouts == Timeouts()


def test_the_output_folder_is_the_flag_then_the_variable() -> None:
    env = {"COMFYFLOW_OUTPUT": "/from/env"}
    assert resolve(env).output == Path("/from/env")
    assert resolve(env, output=Path("flag")).output == Path("flag")


def test_timeouts_are_taken_from_the_flags() -> None:
    assert resolve({}, timeout=5, silence=7.5).timeouts == Timeouts(total=5, silence=7.5)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_a_number_above_zero(seconds: float) -> None:
    with pytest.raises(UsageError, match=r"^--timeout"):
        resolve({}, timeout=seconds)
    with pytest.raises(UsageError, match=r"^--silence"):
        resolve({}, silence=seconds)


# the record


def test_the_shared_folder_is_the_flag_else_the_variable_else_none() -> None:
    env = {"COMFYFLOW_SHARED": "/mnt/pictures"}
    assert shared_folder(env, Path("here")) == Path("here")
    assert shared_folder(env) == Path("/mnt/pictures")
    assert shared_folder({"COMFYFLOW_SHARED": ""}) is None
    assert resolve(env).shared == Path("/mnt/pictures")


@pytest.mark.parametrize(
    ("text", "kept"),
    [("1", True), (" Yes ", True), ("on", True), ("0", False), ("no", False), ("", False)],
)
def test_keeping_contents_can_be_a_setting(text: str, kept: bool) -> None:
    assert resolve({"COMFYFLOW_KEEP_CONTENT": text}).keep_content is kept
    assert resolve({"COMFYFLOW_KEEP_CONTENT": text}, keep_content=True).keep_content


def test_a_switch_that_is_neither_yes_nor_no_is_named() -> None:
    with pytest.raises(UsageError, match="COMFYFLOW_KEEP_CONTENT: 'maybe' is neither yes nor no"):
        resolve({"COMFYFLOW_KEEP_CONTENT": "maybe"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("90m", 5400), (" 2h ", 7200), ("1.5d", 129600), ("8 w", 8 * 604800), ("0d", 0)],
)
def test_spans_of_time(text: str, seconds: float) -> None:
    assert age(text) == seconds
    assert moment(text, 10_000_000.0) == 10_000_000.0 - seconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-01T18:30+01:00", datetime(2026, 11, 1, 17, 30, tzinfo=UTC)),
        ("2026-11-01T18:30:00Z", datetime(2026, 11, 1, 18, 30, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 11, 1).astimezone()),
        ("2026-11-01 08:15", datetime(2026, 11, 1, 8, 15).astimezone()),
    ],
)
def test_moments_are_iso_dates_in_local_time_unless_they_say_otherwise(text: str, at: datetime) -> None:
    assert moment(text, 0.0) == at.timestamp()


@pytest.mark.parametrize("text", ["", "yesterday", "2h ago", "-3d", "2026-13-01", "3", "1e9d"])
def test_a_text_that_is_no_moment_is_shown_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"--until: .* is no moment; write 90m, 2h, 3d"):
        moment(text, 0.0, source="--until")


@pytest.mark.parametrize("text", ["", "30", "d", "2026-11-01", "-3d"])
def test_a_text_that_is_no_span_of_time_is_shown(text: str) -> None:
    with pytest.raises(UsageError, match=r"--older-than: .* is no span of time"):
        age(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 100 * 2**20), ("5000", 5000), ("64k", 2**16), ("2M", 2**21), ("3GiB", 3 * 2**30), ("0", 0)],
)
def test_the_limit_for_kept_files_is_a_size(text: str, size: int) -> None:
    assert content_limit({"COMFYFLOW_CONTENT_LIMIT": text}) == size


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "9" * 40])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="COMFYFLOW_CONTENT_LIMIT"):
        content_limit({"COMFYFLOW_CONTENT_LIMIT": text})


# several servers


def test_servers_may_have_a_weight_and_a_queue() -> None:
    env = {
        "COMFYFLOW_SERVERS": " http://a:1#weight=2&ahead=4, b\nhttp://c:3#weight=0 ",
        "COMFYFLOW_URL": "http://d",
    }
    assert pool_servers(env) == (
        PoolServer("http://a:1", 2.0, 4),
        PoolServer("http://b:8188"),
        PoolServer("http://c:3", 0.0),
    )
    assert pool_servers(env, ["http://e:5", "http://f:6"]) == (
        PoolServer("http://e:5"),
        PoolServer("http://f:6"),
    )
    settings = resolve(env)
    assert (settings.url, settings.shown_url) == ("http://a:1", "http://a:1, http://b:8188, http://c:3")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["http://a:1#weight=-1"], "what may follow '#'"),
        (["http://a:1#weight=x"], "what may follow '#'"),
        (["http://a:1#ahead=-1"], "what may follow '#'"),
        (["http://a:1#slow"], "what may follow '#'"),
        (["http://a:1#speed=2"], "what may follow '#'"),
        (["http://a:1", "http://u:p@a:1/"], "http://a:1 is given twice"),
    ],
)
def test_servers_that_make_no_pool_are_told(flags: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        pool_servers({}, flags)
    assert "--server" in str(caught.value)
