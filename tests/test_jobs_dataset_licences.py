"""Licences are told by headers, by their texts' own phrases, and by the names of their files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.licences import is_licence_file, licence_of, spdx_of

ROOT = Path(__file__).parent.parent
MIT = """Copyright (c) 2020 A. B.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction.
"""
MIT_NOTICE = "The above copyright notice and this permission\n notice shall be included in all copies.\n"
BSD = (
    "Redistribution and use in source and binary forms, with or without\n# modification, are permitted provided that\n"
)
ENDORSE = "The name may not be used to endorse or\n// promote products derived from this software.\n"
ADVERTISE = "All advertising materials mentioning features or use of this software must say so.\n" + ENDORSE
ISC = (
    "Permission to use, copy, modify, and/or distribute this software\n"
    "for any purpose with or without fee is hereby granted"
)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("# SPDX-License-Identifier: MIT\n", "MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */", "GPL-2.0-only WITH Linux-syscall-note"),
        ("<!-- SPDX-License-Identifier: Apache-2.0 -->", "Apache-2.0"),
        ("// SPDX-License-Identifier:  (MIT OR  Apache-2.0)\r\n", "(MIT OR Apache-2.0)"),
        ("# SPDX-License-Identifier: LicenseRef-Own and more words", "LicenseRef-Own"),
        ("# SPDX-License-Identifier: (MIT", None),
        ("# SPDX-License-Identifier:\nMIT", None),
        ("# " + "x" * 9000 + "\n# SPDX-License-Identifier: MIT\n", None),
        ("x = 1\n", None),
    ],
)
def test_a_header_names_the_licence(header, name):
    assert spdx_of(header) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (MIT + MIT_NOTICE, "MIT"),
        (MIT, "MIT-0"),
        (BSD, "BSD-2-Clause"),
        (BSD + ENDORSE, "BSD-3-Clause"),
        (BSD + ADVERTISE, "BSD-4-Clause"),
        (ISC + ", provided that the above copyright notice and this permission notice appear in all copies.", "ISC"),
        (ISC + ".", "0BSD"),
        ("   GNU GENERAL PUBLIC LICENSE\n      Version 3, 29 June 2007\n", "GPL-3.0"),
        ("   GNU LESSER GENERAL PUBLIC LICENSE\n      Version 3, 29 June 2007\n", "LGPL-3.0"),
        ("   GNU AFFERO GENERAL PUBLIC LICENSE\n      Version 3, 19 November 2007\n", "AGPL-3.0"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        (MIT + MIT_NOTICE + "\n----\n" + BSD + ENDORSE, "BSD-3-Clause AND MIT"),
        (
            'Licensed under the Apache License, Version 2.0 (the "License"); you may not\nuse this file except',
            "Apache-2.0",
        ),
        ("All rights reserved.", None),
        ("Licensed under the Apache License, Version 2.0; see the GNU General Public License version 3.", None),
    ],
)
def test_a_licence_is_told_by_its_own_words(text, name):
    assert licence_of(text) == name


def test_this_projects_own_licence_is_told():
    assert licence_of((ROOT / "LICENSE").read_text(encoding="utf-8")) is not None


@given(text=st.text(max_size=300))
def test_any_text_has_a_licence_or_none(text):
    assert licence_of(text) is None or licence_of(text)


@pytest.mark.parametrize(
    "path",
    ["LICENSE", "LICENCE.md", "a/COPYING", "COPYING.LESSER", "LICENSE-MIT", "MIT-LICENSE.txt", "UNLICENSE", "NOTICE",
     "LICENSES/Apache-2.0.txt", "License.APACHE"],
)  # fmt: skip
def test_a_licence_file_is_told_by_its_name(path):
    assert is_licence_file(path)


@pytest.mark.parametrize(
    "path", ["license.py", "src/licence-check.js", "relicense.md", "my_license_key.txt", "README", ""]
)
def test_code_about_licences_is_no_licence_file(path):
    assert not is_licence_file(path)
