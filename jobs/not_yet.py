"""Keys that the schema knows and nothing honours yet: another value than the default is refused, never ignored.

Whoever makes one work takes its line out. Standard library only.
"""

#: section.key, one a line, sorted.
NOT_YET = frozenset({
    "evaluation.future_rows",
    "evaluation.minutes",
    "evaluation.new_tokens",
    "evaluation.prompts",
    "evaluation.resamples",
    "evaluation.rows",
    "evaluation.samples",
    "lora.layers",
    "optimization.decay_ratio",
    "optimization.lora_plus_ratio",
    "optimization.min_ratio",
    "optimization.schedule",
    "output.keep_best",
    "output.project",
    "output.publish",
    "output.sinks",
    "training.checkpoint_async",
    "training.compile",
    "training.early_stopping",
    "training.early_stopping_delta",
    "training.ema",
    "training.neftune_alpha",
})
