r"""TeX of the derivations as plain text for a terminal: ``$\hat y = H \theta_+$`` as ``ŷ = H θ₊``.

What has no character of its own keeps its name without the backslash.
"""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    name: unicodedata.lookup(f"GREEK {case} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")
    for case, names in {
        "SMALL": "alpha beta gamma delta zeta eta theta iota kappa lambda mu nu xi pi rho sigma "
        "tau phi chi omega",
        "CAPITAL": "Gamma Delta Theta Lambda Xi Pi Sigma Phi Omega",
    }.items()
    for name in names.split()
}
_PAIRS = """
epsilon=ε varepsilon=ε vartheta=ϑ varrho=ρ varphi=φ top=ᵀ cdot=· circ=∘ times=× otimes=⊗ pm=±
ast=* le=≤ ge=≥ lt=< gt=> ne=≠ approx=≈ sim=~ ll=≪ gg=≫ lesssim=≲ propto=∝ perp=⊥ mid=| succ=≻
succeq=⪰ preceq=⪯ in=∈ notin=∉ supseteq=⊇ to=→ mapsto=↦ leftarrow=← Longrightarrow=⟹ infty=∞ sum=Σ
partial=∂ ell=ℓ langle=⟨ rangle=⟩ Vert=‖ lVert=‖ rVert=‖ lvert=| rvert=| lbrace={ rbrace=} dots=...
ldots=... cdots=... cr=; left= right= Big= big= bigl= bigr= mathrel= mathrm= mathbf= mathcal=
mathbb= text=
"""
_SIGNS = _GREEK | {"qquad": "    ", "quad": "  "}
_SIGNS |= {name: sign for name, _, sign in (pair.partition("=") for pair in _PAIRS.split())}
_ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303"}
_RAISED = dict(zip("0123456789+-=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", strict=True)) | {"ᵀ": "ᵀ", "∘": "°"}
_LOWERED = dict(zip("0123456789+-=()aeijknoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑᵢⱼₖₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
_TOKEN = re.compile(r"\\[a-zA-Z]+ ?|\\.|[{}^_]|[^\\{}^_]", re.DOTALL)


class _Reader:
    """Reads TeX from left to right."""

    def __init__(self, tex: str) -> None:
        self.tokens = _TOKEN.findall(re.sub(r"\s+", " ", tex))[::-1]

    def group(self) -> str:
        """Read one argument: a group in braces, or one token."""
        while self.tokens and self.tokens[-1] == " ":
            self.tokens.pop()
        return self.token() if self.tokens else ""

    def until(self, end: str) -> str:
        """Read up to a token, which is dropped."""
        found = []
        while self.tokens and self.tokens[-1] != end:
            found.append(self.token())
        if self.tokens:
            self.tokens.pop()
        return "".join(found)

    def token(self) -> str:
        """Read a token with its arguments."""
        token = self.tokens.pop()
        if token == "{":
            return self.until("}")
        if token in "^_":
            return _script(token, self.group())
        if not token.startswith("\\"):
            return {"&": ",", "~": " "}.get(token, token)
        name = token[1:].strip()
        space = " " if token.endswith(" ") and token[1:2].isalpha() else ""
        if name in _ACCENTS:
            letter = self.group()
            return unicodedata.normalize("NFC", letter[:1] + _ACCENTS[name] + letter[1:])
        if name == "sqrt":
            return f"√{_one(self.group())}"
        if name in ("frac", "tfrac"):
            return f"{_one(self.group())}/{_one(self.group())}"
        if name in ("begin", "end"):
            self.group()
            return "[" if name == "begin" else "]"
        if name == "\\":
            return "; "
        if not name.isalpha():
            return {",": " ", ";": " ", "!": ""}.get(name, name)
        sign = _SIGNS.get(name, name)
        return sign + space if sign else ""


def _one(text: str) -> str:
    """Return a text in parentheses, unless it is one number or name."""
    return text if re.fullmatch(r"[\w\u0300-\u0304]+|\([^()]*\)", text) else f"({text})"


def _script(sign: str, text: str) -> str:
    """Return an exponent or an index; as ``^(...)`` where it has no characters."""
    table = _RAISED if sign == "^" else _LOWERED
    space, text = " " * text.endswith(" "), text.strip()
    if text and all(letter in table for letter in text):
        return "".join(table[letter] for letter in text) + space
    return f"{sign}{_one(text)}{space}" if text else ""


def plain(tex: str) -> str:
    r"""Return TeX without its dollar signs as plain text.

    Examples
    --------
    >>> plain(r"S = H P H^\top + R, \quad \theta_+ = \theta + \tfrac{\alpha}{r} \hat y^2")
    'S = H P Hᵀ + R,    θ₊ = θ + α/r ŷ²'
    """
    reader = _Reader(tex)
    text = re.sub(r"(?<=\S) {1,2}(?=\S)", " ", reader.until(""))
    return re.sub(r" +((?!\.\.)[,.;:)])", r"\1", text).strip()


def plain_text(markdown: str) -> str:
    """Return a section with its mathematics as plain text; displays on lines of their own."""

    def put(found: re.Match[str]) -> str:
        return f"\n\n    {plain(found[1])}\n\n" if found[1] else plain(found[2])

    text = re.sub(r"\n\n\n+", "\n\n", _MATH.sub(put, markdown))
    return re.sub(r"\*\*?([^*\n]+)\*\*?|\[([^\]]+)\]\([^)]+\)", lambda m: m[1] or m[2], text)
