"""The simulated kernel: what a lab host's kernel loads and shows, given what is on its disk."""

import json
from pathlib import Path

import pytest

from lab.host import hardware, kernel, kernel_view
from lab.mirror.kernel_module import module_image

KVER = "6.18.44-lab"
RIG = hardware.describe("rig1")


class Disk:
    """The root directory of a host that has just been installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root / "usr/lib/modules" / KVER
        self.tree.mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        self.listed: list[str] = []
        self.module("kernel/drivers/gpu/drm/nouveau/nouveau.ko")

    def file(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def module(
        self, where: str, license: str = "GPL", version: str = "", kver: str = KVER, listed: bool = True
    ) -> None:
        path = self.tree / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            module_image([("license", license), ("version", version), ("vermagic", f"{kver} SMP preempt mod_unload ")])
        )
        if listed:
            self.listed.append(where)
        (self.tree / "modules.dep").write_text("".join(f"{line}:\n" for line in self.listed))

    def driver(self, version: str = "595.71.05", license: str = "Dual MIT/GPL", kver: str = KVER) -> None:
        for name in ("nvidia", "nvidia-modeset", "nvidia-drm", "nvidia-uvm"):
            self.module(f"updates/dkms/{name}.ko", license, version, kver)

    def boot(self, rig: hardware.Hardware = RIG) -> kernel.Kernel:
        return kernel.boot(self.root, rig, KVER)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "root")


@pytest.fixture
def installed(disk: Disk) -> Disk:
    """A host with the driver and the package's blacklist of nouveau."""
    disk.driver()
    disk.file("usr/lib/modprobe.d/nvidia-blacklists-nouveau.conf", "blacklist nouveau\n")
    return disk


def test_a_host_with_kernels_of_its_own_boots_the_first_of_its_menu(disk: Disk) -> None:
    assert kernel.boot_release(disk.root, KVER) == KVER
    disk.file("boot/grub/grub.cfg", "\tlinux\t/boot/vmlinuz-6.14.0-33-generic root=/dev/vda1 ro\n")
    assert kernel.boot_release(disk.root, KVER) == "6.14.0-33-generic"


def test_programs_that_ask_the_kernel_find_the_modules_of_the_booted_one(disk: Disk) -> None:
    disk.driver()
    for _ in range(2):
        kernel_view.lend_modules(disk.root, KVER, "6.18.44-below")
    lent = disk.root / "lib/modules/6.18.44-below"
    assert (lent / "updates/dkms/nvidia.ko").is_file()
    assert (lent / "modules.dep").read_text() == (disk.tree / "modules.dep").read_text()
    assert not (lent / "build").is_symlink()


def test_a_bare_host_runs_nouveau(disk: Disk) -> None:
    assert list(disk.boot().modules) == ["nouveau"]


def test_the_installed_driver_is_loaded_with_its_version_and_its_companions(installed: Disk) -> None:
    booted = installed.boot()
    assert booted.driver_version == "595.71.05"
    assert list(booted.modules) == ["nvidia", "nvidia_modeset", "nvidia_drm", "nvidia_uvm"]


def test_without_the_blacklist_nouveau_keeps_the_cards(disk: Disk) -> None:
    disk.driver()
    booted = disk.boot()
    assert booted.driver_version is None
    assert "already bound to nouveau" in booted.log[0]


@pytest.mark.parametrize(
    "line", ["blacklist nouveau", "install nouveau /bin/false", "  blacklist   nouveau  ", "blacklist \\\nnouveau"]
)
def test_every_way_to_block_nouveau_counts(disk: Disk, line: str) -> None:
    disk.file("etc/modprobe.d/x.conf", f"# a comment\n{line}\n")
    assert not disk.boot().modules


def test_nouveau_can_be_blocked_on_the_kernel_command_line(disk: Disk) -> None:
    disk.file(
        "boot/grub/grub.cfg", f"\tlinux\t/boot/vmlinuz-{KVER} root=/dev/vda1 ro modprobe.blacklist=floppy,nouveau\n"
    )
    assert not disk.boot().modules


def test_a_file_in_etc_hides_the_packages_file_of_the_same_name(installed: Disk) -> None:
    installed.file("etc/modprobe.d/nvidia-blacklists-nouveau.conf", "# nothing\n")
    assert list(installed.boot().modules) == ["nouveau"]


def test_a_comment_and_another_suffix_block_nothing(disk: Disk) -> None:
    disk.file("etc/modprobe.d/x.conf", "#blacklist nouveau\n")
    disk.file("etc/modprobe.d/x.conf.bak", "blacklist nouveau\n")
    assert list(disk.boot().modules) == ["nouveau"]


def test_a_link_is_followed_inside_the_hosts_own_disk(disk: Disk) -> None:
    disk.file("etc/nvidia/modprobe.conf", "blacklist nouveau\n")
    disk.file("etc/alternatives/readme", "")
    (disk.root / "etc/alternatives/modprobe.conf").symlink_to("/etc/nvidia/modprobe.conf")
    (disk.root / "etc/modprobe.d").mkdir()
    (disk.root / "etc/modprobe.d/nvidia.conf").symlink_to("/etc/alternatives/modprobe.conf")
    assert not disk.boot().modules


def test_a_loop_of_links_is_not_a_configuration(disk: Disk) -> None:
    (disk.root / "etc/modprobe.d").mkdir(parents=True)
    (disk.root / "etc/modprobe.d/a.conf").symlink_to("/etc/modprobe.d/b.conf")
    (disk.root / "etc/modprobe.d/b.conf").symlink_to("a.conf")
    assert list(disk.boot().modules) == ["nouveau"]


@pytest.mark.parametrize("line", ["blacklist nvidia", "install nvidia /bin/true"])
def test_a_blocked_driver_is_not_loaded(installed: Disk, line: str) -> None:
    installed.file("etc/modprobe.d/mine.conf", f"{line}\n")
    assert not installed.boot().modules


def test_the_proprietary_module_refuses_blackwell_cards(disk: Disk) -> None:
    disk.driver(license="NVIDIA")
    disk.file("etc/modprobe.d/n.conf", "blacklist nouveau\n")
    booted = disk.boot()
    assert booted.driver_version is None
    assert "requires use of the NVIDIA open kernel modules" in booted.log[0]


def test_a_module_built_for_another_kernel_is_refused(disk: Disk) -> None:
    disk.driver(kver="6.1.0-40-amd64")
    disk.file("etc/modprobe.d/n.conf", "blacklist nouveau\n")
    booted = disk.boot()
    assert booted.driver_version is None
    assert "version magic '6.1.0-40-amd64" in booted.log[0]


def test_a_module_that_depmod_never_saw_is_not_found(disk: Disk) -> None:
    disk.module("updates/dkms/nvidia.ko", "Dual MIT/GPL", "595.71.05", listed=False)
    disk.file("etc/modprobe.d/n.conf", "blacklist nouveau\n")
    assert disk.boot().driver_version is None


def test_an_invalid_module_file_is_refused(installed: Disk) -> None:
    (installed.tree / "updates/dkms/nvidia.ko").write_text("half a download")
    assert installed.boot().driver_version is None


def test_a_module_file_that_is_gone_is_not_found(installed: Disk) -> None:
    (installed.tree / "updates/dkms/nvidia.ko").unlink()
    assert installed.boot().driver_version is None


def test_without_cards_the_driver_does_not_load(installed: Disk) -> None:
    booted = installed.boot(hardware.describe("rig1", 0))
    assert not booted.modules


def test_a_disk_without_a_kernel_has_no_modules(tmp_path: Path) -> None:
    assert not kernel.boot(tmp_path, RIG, KVER).modules


@pytest.mark.parametrize(("given", "seen"), [("", "N"), ("=1", "Y"), ("=Y", "Y"), ("=0", "N"), ("=n", "N")])
def test_uvm_shows_whether_hmm_is_off(installed: Disk, given: str, seen: str) -> None:
    if given:
        installed.file("etc/modprobe.d/rigup.conf", f"options nvidia-uvm uvm_disable_hmm{given}\n")
    assert installed.boot().modules["nvidia_uvm"].parameters["uvm_disable_hmm"] == seen


def test_the_last_of_several_values_wins(installed: Disk) -> None:
    installed.file("etc/modprobe.d/a.conf", "options nvidia_uvm uvm_disable_hmm=1\n")
    installed.file("etc/modprobe.d/b.conf", "options nvidia_uvm uvm_disable_hmm=0\n")
    assert installed.boot().modules["nvidia_uvm"].parameters["uvm_disable_hmm"] == "N"


def test_a_value_that_is_not_boolean_prevents_uvm_from_loading(installed: Disk) -> None:
    installed.file("etc/modprobe.d/a.conf", "options nvidia_uvm uvm_disable_hmm=maybe\n")
    booted = installed.boot()
    assert "nvidia_uvm" not in booted.modules
    assert booted.driver_version == "595.71.05"


def test_an_option_nobody_knows_is_ignored_as_the_kernel_does(installed: Disk) -> None:
    installed.file("etc/modprobe.d/a.conf", "options nvidia_uvm no_such_option=1\n")
    assert "no_such_option" not in installed.boot().modules["nvidia_uvm"].parameters


def test_options_of_the_driver_are_shown_by_proc(installed: Disk) -> None:
    installed.file(
        "etc/modprobe.d/a.conf",
        'options nvidia NVreg_EnableResizableBar=1 NVreg_RegistryDwords="ForceP2P=0x11;RMForceP2PType=1"\n',
    )
    params = installed.boot().nvidia_params
    assert params["EnableResizableBar"] == "1"
    assert params["RegistryDwords"] == '"ForceP2P=0x11;RMForceP2PType=1"'
    assert params["EnableMSI"] == "1"


def test_an_unconfigured_boot_loader_gives_the_default_command_line(disk: Disk) -> None:
    assert disk.boot().cmdline == f"BOOT_IMAGE=/boot/vmlinuz-{KVER} root=/dev/vda1 ro quiet"


def test_the_first_menu_entry_boots(disk: Disk) -> None:
    disk.file(
        "boot/grub/grub.cfg",
        "menuentry 'one' {\n"
        f"\tlinux\t/boot/vmlinuz-{KVER} root=/dev/vda1 ro iommu=pt quiet\n"
        f"\tinitrd\t/boot/initrd.img-{KVER}\n"
        "}\nmenuentry 'two' {\n"
        f"\tlinux\t/boot/vmlinuz-{KVER} root=/dev/vda1 ro single\n}}\n",
    )
    assert disk.boot().cmdline == f"BOOT_IMAGE=/boot/vmlinuz-{KVER} root=/dev/vda1 ro iommu=pt quiet"


def test_an_empty_line_in_grub_cfg_does_not_swallow_the_next(disk: Disk) -> None:
    disk.file("boot/grub/grub.cfg", f"\tlinux\t/boot/vmlinuz-{KVER}\n\tinitrd\t/boot/initrd.img-{KVER}\n")
    assert disk.boot().cmdline == f"BOOT_IMAGE=/boot/vmlinuz-{KVER}"


def written(disk: Disk, tmp_path: Path) -> Path:
    view = tmp_path / "hardware"
    kernel_view.write(disk.boot(), RIG, view)
    return view


def test_a_bare_host_shows_cards_and_no_driver(disk: Disk, tmp_path: Path) -> None:
    view = written(disk, tmp_path)
    assert list((view / "proc-driver").iterdir()) == []
    assert [path.name for path in (view / "module").iterdir()] == ["nouveau"]
    found = json.loads((view / "lab.json").read_text())
    assert found["loaded_driver"] is None
    assert len(found["gpus"]) == 4


def test_the_bus_has_four_cards_a_bmc_and_a_network_card(disk: Disk, tmp_path: Path) -> None:
    bus = written(disk, tmp_path) / "pci"
    ids = sorted(
        " ".join((device / name).read_text().strip() for name in ("class", "vendor", "device"))
        for device in bus.iterdir()
    )
    assert ids == [
        "0x020000 0x8086 0x1563",
        *["0x030000 0x10de 0x2bb1"] * 4,
        "0x030000 0x1a03 0x2000",
    ]


def test_config_space_agrees_with_the_ids(disk: Disk, tmp_path: Path) -> None:
    config = (written(disk, tmp_path) / "pci/0000:01:00.0/config").read_bytes()
    assert config[:4] == bytes.fromhex("de10b12b")
    assert config[8:12] == bytes.fromhex("a1000003")
    assert config[0x2C:0x30] == bytes.fromhex("de104b20")


def test_the_bound_driver_is_a_link_by_its_name(installed: Disk, tmp_path: Path) -> None:
    view = written(installed, tmp_path)
    assert (view / "pci/0000:01:00.0/driver").readlink().name == "nvidia"


def test_a_loaded_driver_shows_what_the_real_one_shows(installed: Disk, tmp_path: Path) -> None:
    view = written(installed, tmp_path)
    version = (view / "proc-driver/nvidia/version").read_text()
    assert version.startswith("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build  (")
    assert (view / "module/nvidia/version").read_text() == "595.71.05\n"
    assert (view / "module/nvidia/initstate").read_text() == "live\n"
    assert (view / "module/nvidia_uvm/parameters/uvm_disable_hmm").read_text() == "N\n"
    information = (view / "proc-driver/nvidia/gpus/0000:21:00.0/information").read_text()
    assert f"GPU UUID: \t {RIG.gpus[1].uuid}\n" in information
    assert json.loads((view / "lab.json").read_text())["loaded_driver"] == "595.71.05"
    assert (view / "proc-modules").read_text().splitlines()[-1].startswith("nvidia ")


def test_nothing_of_the_last_boot_remains(installed: Disk, tmp_path: Path) -> None:
    view = written(installed, tmp_path)
    installed.file("etc/modprobe.d/a.conf", "blacklist nvidia\n")
    kernel_view.write(installed.boot(), RIG, view)
    assert not (view / "proc-driver/nvidia").exists()
    assert not (view / "module/nvidia").exists()


def test_a_host_has_the_same_cards_every_time_and_no_other_host_has_them() -> None:
    again, other = hardware.describe("rig1"), hardware.describe("rig2", 8)
    assert [gpu.uuid for gpu in again.gpus] == [gpu.uuid for gpu in RIG.gpus]
    assert not {gpu.uuid for gpu in RIG.gpus} & {gpu.uuid for gpu in other.gpus}
    assert len({device.bdf for device in other.devices()}) == len(other.devices())


def test_a_number_of_cards_that_no_board_takes_is_refused() -> None:
    with pytest.raises(ValueError, match="9 GPUs: a lab host has 0 to 8"):
        hardware.describe("rig1", 9)
