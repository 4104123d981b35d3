# Builds sealed feature stores from raw exports and trains models on them, as configured in workflow/config/config.yaml.
from snakemake.utils import min_version

min_version("9.20")

# A file given by --configfile replaces the default configuration, so that the demo's datasets are not mixed in.
if not workflow.overwrite_configfiles:

    configfile: f"{workflow.basedir}/workflow/config/config.yaml"


pathvars:
    results="results",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/store.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/suites_common.smk"
include: "workflow/rules/suites.smk"


for rules_of_dataset in particular_rules():

    include: rules_of_dataset


INTERNALS.on_nothing_to_do(summarise)


localrules:
    all,
    stores,
    runs,
    # These take seconds and run where Snakemake was started, so that errors are reported before any job is queued.
    settings,
    suite_settings,


rule all:
    default_target: True
    input:
        all_targets,


rule stores:
    input:
        store_targets,


rule runs:
    input:
        run_targets,


onstart:
    begin(log)


onsuccess:
    end_suites()
    summarise()


onerror:
    end_suites()
    place = log if isinstance(log, str) else " ".join(log)
    for _, steps in BEGUN:
        sys.stderr.write(f"{steps.ending(place)}\n")
