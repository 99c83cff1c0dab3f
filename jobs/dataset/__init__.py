"""The dataset job: from a git repository to packed rows of token ids."""
