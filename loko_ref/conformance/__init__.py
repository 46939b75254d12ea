"""The conformance kit: is another's implementation right, and where does it go wrong first?

``operations`` the catalogue; ``cases`` the inputs; ``oracle`` the expected numbers; ``formulas``,
``descent`` and ``plain`` every quantity by its plain formula; ``implementation`` the code under
test; ``tolerance`` how large an error may be; ``compare`` the walk along the dataflow; ``verify``
the engine; ``report`` what is printed and written.
"""
