"""The progress of a download in words."""

from rigup.text import progress_line


def test_it_has_the_bytes_the_rate_the_time_left_and_the_current_work() -> None:
    told = {
        "step": "downloading",
        "doing": "6 files from huggingface.co, 2 files from rig2",
        "bytes_done": 5_000_000_000,
        "bytes_total": 240_000_000_000,
        "rate": 500_000_000,
    }
    assert progress_line("o/n", told) == (
        "o/n: downloading, 5.0 GB of 240.0 GB, 500 MB/s, about 7 min 50 s left, "
        "6 files from huggingface.co, 2 files from rig2"
    )


def test_unknown_values_are_left_out() -> None:
    assert progress_line("o/n", {}) == "o/n: starting"
    told = {"step": "verifying", "bytes_done": 0, "bytes_total": 240_000_000_000, "rate": 0, "doing": ""}
    assert progress_line("o/n", told) == "o/n: verifying, 0 MB of 240.0 GB"
