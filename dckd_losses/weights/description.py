"""What a file of weights is, in lines for people."""

from __future__ import annotations

from pathlib import Path

from dckd_losses.architecture import LEVELS, Architecture
from dckd_losses.checkpoint import DIGEST, read, read_safetensors
from dckd_losses.weights.conversion import ORIGINAL, architecture_of, sha256
from dckd_losses.weights.places import SOURCES, check_promise


def describe(path: Path) -> list[str]:
    """The architecture, as read off the tensors, and whatever else the file says of itself.

    Raises:
        RuntimeError: the file is missing, cut short, altered or no such encoder; names it.
    """
    tensors = read(path)
    a = architecture_of(tensors, path)
    parts = {"encoder": "encoder", "quant_conv": "quant_conv", "codebook": "quantize"}
    counts = {
        part: sum(t.numel() for name, t in tensors.items() if name.startswith(f"{prefix}."))
        for part, prefix in parts.items()
    }
    attention = [str(level + 1) for level in range(LEVELS) if a.attention[level]]
    return [
        f"file          {path}, {path.stat().st_size:,} bytes",
        f"sha256        {sha256(path)}",
        f"levels        {LEVELS} of {', '.join(map(str, a.channels))} channels, stem {a.stem}",
        f"blocks        {a.blocks} a level",
        f"attention     on level {', '.join(attention) or '-'} and in the middle",
        f"downsampling  {2 ** (LEVELS - 1)}",
        f"codes         {a.codes} of {a.code_channels} channels, from {a.z_channels} latent ones",
        f"parameters    {sum(counts.values()):,}: "
        + ", ".join(f"{part} {count:,}" for part, count in counts.items()),
        *(f"metadata      {key}: {value}" for key, value in sorted(_metadata(path).items())),
    ]


def verify(path: Path) -> list[str]:
    """Hold a file against all that is known of it: what it holds, what it says, what it is called.

    Returns:
        What was found to be as it should.

    Raises:
        RuntimeError: something is not; names the file.
    """
    a: Architecture = architecture_of(read(path), path)
    found = [f"a complete encoder with {a.codes} codes, each tensor of its exact shape"]
    name, metadata = path.stem, _metadata(path)
    if path.suffix != ".safetensors":
        seen = sha256(path)
        known = [n for n, source in SOURCES.items() if source.sha256 == seen]
        return [*found, f"sha256 {seen}, {known[0] if known else 'not one that is published'}"]
    if DIGEST in metadata:
        found.append(f"tensors as they were written, sha256 {metadata[DIGEST]}")
    else:
        found.append("without a digest: what wrote it left nothing to tell an alteration by")
    if name in SOURCES:
        check_promise(name, a, path)
        found.append(f"the architecture of {name}")
        published, original = SOURCES[name].sha256, metadata.get(ORIGINAL)
        if None not in (published, original):
            if published != original:
                raise RuntimeError(
                    f"{path} was made from a checkpoint with sha256 {original}; that of {name} is "
                    f"{published}"
                )
            found.append(f"made from the published checkpoint, sha256 {published}")
    return found


def _metadata(path: Path) -> dict[str, str]:
    return read_safetensors(path)[1] if path.suffix == ".safetensors" else {}
