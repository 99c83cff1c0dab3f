"""How a model lives on a device: int8, nf4, full precision, and what each needs in memory. Knows no job."""
