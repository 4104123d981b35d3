"""Helper functions of the suite rules, and the start and end hooks of workflow runs that build suites."""


def suite_of(wildcards):
    return SUITES.suite(wildcards.suite)


def suite_batches(wildcards):
    """Files of the batches that hold a suite's cells."""
    return batch_files(suite_of(wildcards).runs.values())


def suite_description(suite):
    """Contents of suite.json: columns, rows and cells of a suite."""
    places = {
        name: (store_folder(name), path(f"<results>/raw/{name}.truth") if SUITES.store(name).simulated else None)
        for name in suite.stores
    }
    return description(suite, SUITES.size, places)


def suite_targets(name):
    """Input function for all files that a suite builds."""

    def targets(wildcards):
        files = []
        for part in SUITES.parts(name):
            files += [f"<results>/suites/{part.name}/{file}" for file in ("settings.json", "finished")]
            files += [file for store in part.stores for file in store_files(store)]
        return [*files, f"<results>/suites/{name}/report/index.html"]

    return targets


def searched(wildcards):
    """The cell that a search or a cost measurement represents: the one with the first seed."""
    return SUITES.first_seeds[wildcards.experiment, wildcards.method]


def suite_costs(wildcards):
    """Measurements that a cost figure needs."""
    suite = suite_of(wildcards)
    cells = suite.cells.values() if suite.figure == "cost" else ()
    return list(dict.fromkeys(f"<results>/costs/{run.experiment}/{run.label}.csv" for run in cells))


def suite_command(suite, out):
    """Arguments of `mrpipe` that render a suite into a folder."""
    arguments = ["--suite", f"{out}/suite.json", "--runs", path("<results>/runs"), "--out", str(out)]
    figures = ["suite-figures", *arguments, "--costs", path("<results>/costs")]
    return figures if suite.figure else ["suite-tables", *arguments]


def suite_folders(wildcards):
    """Output folders of a suite, or of the members of a collection."""
    return [f"<results>/suites/{part.name}" for part in SUITES.parts(wildcards.suite)]


def report_command(folders, page):
    """Arguments of `mrpipe` that build a report page of rendered suites."""
    arguments = ["--suites", *folders, "--cells", path("<results>/runs"), "--searches", path("<results>/searches")]
    return ["report", *arguments, "--out", page]


# Requested suites and progress of this workflow run.
BEGUN = []


def begin(log):
    """Report progress, and continue with the other cells of a suite if one fails."""
    asked = [SUITES.suite(job.wildcards.suite) for job in INTERNALS.jobs("render")]
    needed = {job.jobid: job for job in INTERNALS.jobs_to_run() if not job.is_norun}
    jobs = {job_id: PlannedStep(job.rule.name, dict(job.wildcards.items())) for job_id, job in needed.items()}
    cells = [job for rule in ("cells", "cpu_cells") for job in INTERNALS.jobs(rule) if job.jobid in needed]
    batches = {job.jobid: batch_of(job.wildcards) for job in cells}
    jobs |= {job: PlannedStep("cells", {"batch": str(b), "method": b.runs[0].label}) for job, b in batches.items()}
    steps = Steps(jobs, batches if asked else {}, output=OUTPUT)
    INTERNALS.on_job_finished(steps)
    if asked:
        INTERNALS.keep_going()
    if OUTPUT == "steps":
        sys.stderr.write(f"{len(jobs)} steps; full log: {' '.join(log)}\n")
    BEGUN.append((asked, steps))


def without_result(cell):
    """Evaluations of a cell that have no result of the current options and code; its batch did not finish."""
    from moe_retriever.cli.cells import finished

    request = cell_request(cell)
    return [run for run in cell if not finished(request, run.test.name if run.test else "")]


def end_suites():
    """Render suites from their finished cells, and collect all scores in one file."""
    from mrpipe.store.parquet import write_text

    def run_model(arguments):
        # Errors are shown but do not stop the remaining steps.
        subprocess.run(
            [sys.executable, "-m", "mrpipe", *arguments], stdout=subprocess.DEVNULL if OUTPUT else sys.stderr
        )

    for asked, steps in filter(itemgetter(0), BEGUN):
        cells = (cell for batch in steps.unfinished() for cell in batch.cells)
        unfinished = {run.tested for cell in cells for run in without_result(cell)}
        for suite in asked:
            without = sorted(unfinished & set(suite.runs))
            if without:
                out = Path(path(f"<results>/suites/{suite.name}"))
                # Without this file, the rule renders the suite again once its cells are finished.
                (out / "finished").unlink(missing_ok=True)
                write_text(out / "suite.json", json.dumps(suite_description(suite) | {"unfinished": without}) + "\n")
                sys.stderr.write(f"{out}: {len(without)} of {len(suite.runs)} cells did not finish\n")
                run_model(suite_command(suite, out))
        for job in INTERNALS.jobs("suite_report") if unfinished else ():
            there = [f for f in map(path, suite_folders(job.wildcards)) if Path(f, "table.html").is_file()]
            run_model(report_command(there, path(f"<results>/suites/{job.wildcards.suite}/report/index.html")))
        run_model(["results", "--runs", path("<results>/runs"), "--out", path("<results>/results.parquet")])
