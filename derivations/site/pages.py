def write(source): pass
