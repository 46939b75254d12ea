"""The site's settings. ``build.py`` puts the sources together and builds them."""

import functools
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from docutils import nodes
from sphinx import addnodes
from sphinx.search.en import SearchEnglish
from sphinx.transforms import SphinxTransform

import loko_ref
from loko_ref.files.derivations import LABEL, derivations
from loko_ref.files.pages.prose import mathml

project = "loko_ref"
copyright = "The loko_ref maintainers"
version = release = loko_ref.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
smartquotes = False  # an option keeps its two dashes

suppress_warnings = ["myst.header"]  # a derivation's sections begin at the third level

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "loko_ref"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which a page opened from a file cannot
html_math_renderer = "mathml"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def formula(translator, node):
    """Write a formula as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    text = mathml(node.astext(), block=block)
    translator.body.append(f'<div class="formula" tabindex="0">{text}</div>\n' if block else text)
    raise nodes.SkipNode


class Labels(SphinxTransform):
    """Make every mention of a derivation's label a link to it."""

    default_priority = 700

    def apply(self, **kwargs):
        """Replace the mentions, except in code, formulas, links and headings."""
        known = derivations()
        closed = (
            nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.reference,
            nodes.title, nodes.raw, nodes.comment, addnodes.pending_xref, addnodes.desc_signature,
        )  # fmt: skip
        for text in list(self.document.findall(nodes.Text)):
            above, inside = text.parent, []
            while above is not None:
                inside.append(above)
                above = above.parent
            if any(isinstance(node, closed) for node in inside):
                continue
            found = [m for m in re.finditer(rf"\b{LABEL}\b", text) if m[0] in known]
            if not found:
                continue
            new, at = [], 0
            for m in found:
                new.append(nodes.Text(text[at : m.start()]))
                link = addnodes.pending_xref(
                    "",
                    nodes.inline("", m[0]),
                    refdomain="std",
                    reftype="ref",
                    reftarget=m[0].lower(),
                    refexplicit=True,
                    refwarn=True,
                    refdoc=self.env.current_document.docname,
                )
                new.append(link)
                at = m.end()
            new.append(nodes.Text(text[at:]))
            text.parent.replace(text, new)


def one_tree_per_folder(app, name, template, context, doctree):
    """Resolve the tree of pages once a folder for those outside it, which all have the same."""
    if "orphan" in app.env.metadata.get(name, {}):
        folder, resolved = Path(name).parent, context["toctree"]

        def tree(**options):
            key = folder, *sorted(options.items())
            if key not in trees:
                trees[key] = resolved(**options)
            return trees[key]

        context["toctree"] = tree


trees = {}
stem = functools.cache(SearchEnglish({}).stem)
SearchEnglish.stem = lambda self, word: stem(word)


def setup(app):
    """Register all of it."""
    app.connect("html-page-context", one_tree_per_folder, priority=400)  # the theme's is 500
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.add_transform(Labels)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
