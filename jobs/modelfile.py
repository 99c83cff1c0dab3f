"""The Modelfile that Ollama makes a model of: weights, the adapter where Ollama takes one, a template that fills in."""

from typing import Any

from backends.models import document_end_id
from jobs.dataset.fim import layout_of

FILE = "Modelfile"
#: Architectures, as GGUF names them, whose adapters Ollama takes (its documentation of ADAPTER).
_TAKES_ADAPTERS = frozenset({"llama", "gemma", "gemma2"})


def takes_adapters(architecture: str | None) -> bool:
    """Whether Ollama puts an adapter beside a base of this architecture."""
    return architecture in _TAKES_ADAPTERS


def modelfile(weights: str, adapter: str | None, tokenizer: Any) -> str:
    """The text of a Modelfile.

    Args:
        weights: GGUF file of a whole model, as seen from the Modelfile.
        adapter: GGUF file of the adapter; None where `weights` hold it.
        tokenizer: Of the model, as transformers has it.
    """
    lines = [f"FROM ./{weights}"]
    if adapter:
        lines += [f"ADAPTER ./{adapter}"]
    lines += ["PARAMETER temperature 0.1", f'TEMPLATE """{_template(tokenizer)}"""']
    document_end = tokenizer.convert_ids_to_tokens(document_end_id(tokenizer))
    ends = dict.fromkeys(end for end in (document_end, tokenizer.eos_token) if end)
    return "\n".join([*lines, *(f'PARAMETER stop "{end}"' for end in ends)]) + "\n"


def _template(tokenizer: Any) -> str:
    """The prompt as it stands; with a suffix, as the model was taught to fill in."""
    fill = layout_of(tokenizer.get_vocab().get).fill
    if fill is None:
        return "{{ .Prompt }}"
    prefix, suffix, middle = tokenizer.convert_ids_to_tokens(list(fill))
    filled = f"{prefix}{{{{ .Prompt }}}}{suffix}{{{{ .Suffix }}}}{middle}"
    return f"{{{{ if .Suffix }}}}{filled}{{{{ else }}}}{{{{ .Prompt }}}}{{{{ end }}}}"
