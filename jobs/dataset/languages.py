"""Names the language of a file by its name, or by the program its first line asks for.

A small table: what is not in it is `Other`. Names are those of GitHub Linguist.
"""

import re

_BY_ENDING = {
    "Ada": "adb ads",
    "AsciiDoc": "adoc asciidoc",
    "Assembly": "asm s",
    "Astro": "astro",
    "C": "c h",
    "C#": "cs csx",
    "C++": "cc cpp cxx hh hpp hxx ipp",
    "CMake": "cmake",
    "COBOL": "cbl cob",
    "CSS": "css less sass scss",
    "Crystal": "cr",
    "Cython": "pxd pxi pyx",
    "Diff": "diff patch",
    "Elm": "elm",
    "Gettext Catalog": "po pot",
    "HLSL": "hlsl",
    "Jinja": "j2 jinja jinja2",
    "Nim": "nim nims",
    "Objective-C++": "mm",
    "Org": "org",
    "PureScript": "purs",
    "Racket": "rkt",
    "Scheme": "scm ss",
    "Tcl": "tcl",
    "WGSL": "wgsl",
    "WebAssembly": "wat wast",
    "Clojure": "clj cljc cljs",
    "CUDA": "cu cuh",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f03 f08 f90 f95",
    "GLSL": "frag glsl vert",
    "Go": "go",
    "GraphQL": "gql graphql",
    "Groovy": "gradle groovy",
    "HCL": "hcl tf tfvars",
    "HTML": "htm html xhtml",
    "Haskell": "hs lhs",
    "INI": "cfg conf ini properties",
    "JSON": "geojson ipynb json json5 jsonc jsonl webmanifest",
    "Java": "java",
    "JavaScript": "cjs js jsx mjs",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lean": "lean",
    "Lua": "lua",
    "MATLAB": "m",
    "Makefile": "mak make mk",
    "Markdown": "markdown md mdx",
    "Metal": "metal",
    "Nix": "nix",
    "OCaml": "ml mli",
    "PHP": "php",
    "Pascal": "dpr pas",
    "Perl": "pl pm t",
    "PowerShell": "ps1 psd1 psm1",
    "Protocol Buffer": "proto",
    "Python": "py pyi pyw",
    "R": "r rmd",
    "Roff": "1 2 3 4 5 6 7 8 man roff",
    "Ruby": "gemspec rake rb",
    "Rust": "rs",
    "SQL": "sql",
    "SVG": "svg",
    "Scala": "sc scala",
    "Shell": "bash fish sh zsh",
    "Solidity": "sol",
    "Starlark": "bazel bzl star",
    "Svelte": "svelte",
    "Swift": "swift",
    "TOML": "toml",
    "TeX": "bib cls sty tex",
    "Terraform": "tfstate",
    "Text": "csv log txt tsv",
    "TypeScript": "cts mts ts tsx",
    "Verilog": "sv v vh",
    "VHDL": "vhd vhdl",
    "Vue": "vue",
    "XML": "plist xml xsd xsl xslt",
    "YAML": "yaml yml",
    "Zig": "zig",
    "reStructuredText": "rst",
}
_ENDINGS = {ending: language for language, endings in _BY_ENDING.items() for ending in endings.split()}
_NAMES = {
    ".bashrc": "Shell",
    ".profile": "Shell",
    ".zshrc": "Shell",
    "brewfile": "Ruby",
    "build": "Starlark",
    "changelog": "Text",
    "cmakelists.txt": "CMake",
    "copying": "Text",
    "containerfile": "Dockerfile",
    "dockerfile": "Dockerfile",
    "gemfile": "Ruby",
    "gnumakefile": "Makefile",
    "jenkinsfile": "Groovy",
    "justfile": "Just",
    "license": "Text",
    "makefile": "Makefile",
    "podfile": "Ruby",
    "rakefile": "Ruby",
    "readme": "Text",
    "sconscript": "Python",
    "sconstruct": "Python",
    "vagrantfile": "Ruby",
    "workspace": "Starlark",
}
_PROGRAMS = {
    "awk": "Awk",
    "bash": "Shell",
    "dash": "Shell",
    "deno": "TypeScript",
    "fish": "Shell",
    "ksh": "Shell",
    "lua": "Lua",
    "make": "Makefile",
    "node": "JavaScript",
    "perl": "Perl",
    "php": "PHP",
    "python": "Python",
    "rscript": "R",
    "ruby": "Ruby",
    "sh": "Shell",
    "tclsh": "Tcl",
    "zsh": "Shell",
}
_SHEBANG = re.compile(r"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+)*)?(?:\S*/)?([A-Za-z]+)")
#: Names that are followed by what the file is for, as in `Dockerfile.dev`.
_DOTTED = ("containerfile.", "dockerfile.", "jenkinsfile.", "makefile.")
OTHER = "Other"
#: Languages of people: what is written in them tells about code. Text may also be data.
PROSE = frozenset({"AsciiDoc", "Markdown", "Org", "Text", "reStructuredText"})


def language_of(path: str, text: str = "") -> str:
    """The language of a path, e.g. `Python` of `src/a.py`.

    Args:
        path: where the file is; its name alone counts.
        text: its content, whose first line tells where the name has no known ending; may be left out.
    """
    name = path.rpartition("/")[2].lower()
    ending = name.rpartition(".")[2] if "." in name else ""
    known = _NAMES.get(name) or _ENDINGS.get(ending)
    if known is None and name.startswith(_DOTTED):
        known = _NAMES[name.partition(".")[0]]
    if known is None and (shebang := _SHEBANG.match(text)):
        known = _PROGRAMS.get(shebang[1].lower())
    return known or OTHER
