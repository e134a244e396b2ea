from erniem_rt import Session, pipeline
import numpy as np
import pytest

OPTIONS = {"cls": {"labels": ("a", "b", "c")}, "ner": {"labels": ("O", "B-X")}}


@pytest.mark.parametrize("head", ["base", "cls", "ner", "mc", "qa", "ie"])
def test_the_script_and_the_graph_are_one_function(make_text_artifact, scripted_session, head):
    options = OPTIONS.get(head, {})
    artifact = make_text_artifact(head, **options)
    scripted = scripted_session(head, artifact.function, **options)
    ids = np.array([[0, 7, 9, 2], [0, 5, 2, 1]])
    if head == "mc":
        ids = ids[None]
    with Session(artifact.path) as session:
        real, script = session.run(input_ids=ids), scripted.run(input_ids=ids)
    assert real.keys() == script.keys()
    for name in real:
        np.testing.assert_allclose(np.where(np.isnan(script[name]), np.nan, real[name]), script[name], rtol=1e-5)
