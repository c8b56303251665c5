"""Packages for scanners, from container images.

python deploy/package.py label                              the label of an OpenRecon image, base64, for docker build
python deploy/package.py openrecon IMAGE.tar -o FOLDER      the OpenRecon zip, of `docker save`
python deploy/package.py fire ROOT.tar -o recon.img         the FIRE chroot, of `docker export` (needs mke2fs; run as root)
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LABEL = HERE / "openrecon" / "label.json"
LABEL_NAME = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
SPARE = 1.3  # of the size of the files: what the file system needs, and room for logs


def read_label() -> dict[str, Any]:
    """The label, with the version of the package."""
    label: dict[str, Any] = json.loads(LABEL.read_text(encoding="utf-8"))
    source = (HERE.parent / "kspace" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "([^"]+)"', source)
    if found is None:
        raise SystemExit("kspace/__init__.py states no version")
    version = found[1]
    label["general"]["version"] = version
    regulatory = label["general"]["regulatory_information"]
    regulatory |= {
        "production_identifier": version,
        "material_number": f"recon_{version}",
        "udi": f"(00)00000000000000(00){version}",
    }
    return label


def encode_label() -> str:
    """The label as the image carries it."""
    return base64.b64encode(json.dumps(read_label(), indent=2).encode()).decode()


def package_openrecon(image: Path, folder: Path) -> Path:
    """Zip of a saved image and its documentation, named as OpenRecon expects."""
    label = read_label()["general"]
    check_label_of_image(image)
    name = f"OpenRecon_{label['vendor']}_{label['name']['en']}_V{label['version']}"
    folder.mkdir(parents=True, exist_ok=True)
    target, beside = folder / f"{name}.zip", folder / f".{name}.zip.part"
    with tempfile.TemporaryDirectory() as temporary:
        pdf = Path(temporary) / f"{name}.pdf"
        write_pdf(pdf)
        try:
            with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(image, f"{name}.tar")
                archive.write(pdf, pdf.name)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    return target


def check_label_of_image(image: Path) -> None:
    """Refuse an image that `docker save` wrote without our label, or with another one."""
    with tarfile.open(image) as archive:
        manifest = json.load(_member(archive, "manifest.json"))
        if len(manifest) != 1:
            raise SystemExit(f"{image} holds {len(manifest)} images; save one")
        config = json.load(_member(archive, manifest[0]["Config"]))
    labels = config.get("config", {}).get("Labels") or {}
    if labels.get(LABEL_NAME) != encode_label():
        raise SystemExit(f"{image} does not carry the label of this version; build it with --target openrecon")


def _member(archive: tarfile.TarFile, name: str) -> Any:
    try:
        return archive.extractfile(name)
    except KeyError:
        raise SystemExit(f"no {name} in the archive; give what docker save wrote") from None


def write_pdf(path: Path) -> None:
    """One page of documentation."""
    from matplotlib.figure import Figure

    label = read_label()
    lines = [f"recon {label['general']['version']}", "", *_wrap(label["general"]["information"]["en"]), ""]
    for parameter in label["parameters"]:
        lines.append(f"{parameter['label']['en']} ({parameter['id']}), default {parameter['default']}")
        lines += [f"    {value['name']['en']} ({value['id']})" for value in parameter.get("values", [])]
    lines += ["", "NOT FOR DIAGNOSTIC USE", "Steps at the console: docs/SCANNER.md in the repository."]
    figure = Figure(figsize=(8.27, 11.69))
    figure.text(0.1, 0.92, "\n".join(lines), va="top", family="monospace", size=9)
    figure.savefig(path, format="pdf")


def _wrap(text: str, width: int = 76) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def package_fire(root: Path, image: Path) -> Path:
    """File system image (ext3) of an exported container, for FIRE's chroot."""
    if shutil.which("mke2fs") is None:
        raise SystemExit("mke2fs is missing; install e2fsprogs")
    with tempfile.TemporaryDirectory(dir=image.absolute().parent) as temporary:
        folder, beside = Path(temporary) / "root", Path(temporary) / "image"
        with tarfile.open(root) as archive:
            # "tar" keeps links and modes, and nothing outside of the folder can be written.
            archive.extractall(folder, filter="tar")
        for name in ("proc", "sys", "dev", "tmp/share"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        n_bytes = sum(path.lstat().st_size for path in folder.rglob("*"))
        n_mib = int(n_bytes * SPARE / 2**20) + 64
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext3", "-d", str(folder), str(beside), f"{n_mib}M"], check=True)
        beside.replace(image)
    return image


def main() -> int:
    """Parse the arguments and write the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("label")
    for name, what in (("openrecon", "folder for the zip"), ("fire", "image to write")):
        command = commands.add_parser(name)
        command.add_argument("input", type=Path)
        command.add_argument("-o", "--output", type=Path, required=True, help=what)
    given = parser.parse_args()
    if given.command == "label":
        print(encode_label())
    elif given.command == "openrecon":
        print(package_openrecon(given.input, given.output))
    else:
        print(package_fire(given.input, given.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
