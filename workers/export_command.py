"""`repotune export`: an adapter in the forms that other tools take."""

from pathlib import Path
from typing import Any

import click

from queue_app.commands.options import json_flag, print_json, say
from workers.options import adapter_flag, base_of, model_flag


@click.command()
@adapter_flag
@click.option("--output", type=click.Path(path_type=Path), required=True, help="New or empty folder.")
@model_flag
@click.option("--merged", is_flag=True, help="Also whole weights with the adapter in them, as safetensors.")
@click.option(
    "--gguf",
    type=click.Choice(["adapter", "merged"]),
    multiple=True,
    help="Also GGUF, of the adapter or of merged weights (that by llama.cpp's converter). May be given twice.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "f32", "q8_0"]),
    default="f16",
    show_default=True,
    help="Type of the GGUF's weights; an adapter's is f32 or f16.",
)
@click.option("--modelfile", is_flag=True, help="Also a Modelfile for Ollama; needs a GGUF.")
@json_flag
def export(
    *,
    adapter_folder: Path,
    output: Path,
    model: str | None,
    merged: bool,
    gguf: tuple[str, ...],
    outtype: str,
    modelfile: bool,
    as_json: bool,
) -> None:
    """Hand an adapter over: PEFT's files with a model card, merged weights, GGUF, an Ollama Modelfile, USE.md.

    Weights are merged on the CPU into the base in full precision, read back and compared before they count. The folder
    appears whole or not at all.
    """
    from jobs.context import JobContext, StopRequested
    from jobs.published import open_published
    from workers.foreground import leave_interrupted, run_in_foreground

    adapter = open_published(adapter_folder)

    def job(context: JobContext) -> dict[str, Any]:
        from jobs.export import ExportRequest, export

        base, revision = base_of(adapter, model)
        request = ExportRequest(
            adapter=adapter,
            base=base,
            revision=revision,
            merged=merged,
            gguf_adapter="adapter" in gguf,
            gguf_merged="merged" in gguf,
            modelfile=modelfile,
            outtype=outtype,
        )
        return export(request, context)

    try:
        result = run_in_foreground(job, output, to_stderr=as_json)
    except StopRequested:
        leave_interrupted("Stopped: nothing was exported.")
        return
    for name, file in result["made"].items():
        say(f"{name.replace('_', ' ') + ':':<15}{output / file}", as_json=as_json)
    if as_json:
        print_json({"output": str(output), **result})
