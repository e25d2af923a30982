"""Mutation testing: does the fast tier fail if the code of aggregation, codecs or accounting changes?"""
