"""Networks of several sites, each judged where its patients are: no image and no score leaves a site."""
