"""`kie4o batch`: a file of requests becomes a folder of images, and running it again goes on.

`command` has the options and the order of things. `lines` reads the file; `checks` proves what can be proved
without paying; `names` and `plan` decide what there is to do; `run` does it; `reporter` and `progress` show
it; `results` writes it down; `summary` is what is said before and after.
"""
