"""Small projects, generated, and the law of equivalence held against each of them.

:mod:`.projects` writes the projects, :mod:`.running` makes the twins, runs and compares.

What ``migrate`` does on a *healthy* twin needs a word where the migrations themselves put a
sequence behind, or a data migration copies keys: there plain ``migrate`` fails, or loses rows, on
every database. So the reference is ``migrate`` with an oracle: before each statement, outside of
the package and by other means, every sequence that is behind is set to its largest key. Where no
migration names keys or sets sequences back there is nothing to do for it, and it is left out: the
reference is ``migrate``.

Keys are compared as they are, unless a trigger, a rule, a function or a text that can't be read may
draw first: a statement that is repeated has used up the values of its first try; or the oracle may
have moved a sequence past keys that were taken back. There the rows are compared with each
generated key replaced by what its row says.

A refusal is where the design says that nothing is repeated (part of the statement may be committed,
no guard was left, a limit was reached). It is counted, and only accepted with the note that
announces it.
"""
