"""Progress in words: of a download, of other programs."""

from rigup.text import progress_line, work_line


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


def test_a_pull_counts_its_layers_and_other_programs_have_their_last_line() -> None:
    pull = [
        "docker.io/vllm/vllm-openai@sha256:aa: Pulling from vllm/vllm-openai",
        "3f4ca61aafcd: Pulling fs layer",
        "5e5e9c3f8ac2: Pulling fs layer",
        "3f4ca61aafcd: Verifying Checksum",
        "3f4ca61aafcd: Download complete",
    ]
    assert work_line(pull) == "1 of 2 layers downloaded, 0 unpacked"
    assert work_line([*pull, "3f4ca61aafcd: Pull complete"]) == "1 of 2 layers downloaded, 1 unpacked"
    assert work_line(["Building module:", "make -j16 modules"]) == "make -j16 modules"
    assert work_line([]) == ""
