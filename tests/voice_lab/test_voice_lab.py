"""test_voice_lab.py - voice_lab's model classes against golden/tiny-0, and what its parts promise to each other.

Exit 77 where PyTorch is missing. COSYFARM_BIN names the programs (for a synthetic model).
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, ROOT)
try:
    import numpy as np
    import torch
    import regex  # noqa: F401  (the tokenizer's)
except ImportError as e:
    print(f"{e.name} is not installed: pip install torch numpy regex")
    sys.exit(77)

from voice_lab import evaluate, export, flite, flow, hift, llm, mel, sentences, tensors, tokens, vocoder  # noqa: E402
from voice_lab import train, train_flow, train_llm  # noqa: E402
from voice_lab.tokenizer import PREFIX, Tokenizer  # noqa: E402

SHARED = os.environ.get("COSYFARM_SHARED", "")
FOLDERS = [os.path.join(ROOT, "tests", "golden")] + ([os.path.join(SHARED, "golden")] if SHARED else [])
WORDS = sentences.word_list(os.path.join(ROOT, "voice_lab", "words.txt"))


def setUpModule():
    global MODEL
    torch.set_num_threads(1)
    MODEL = tempfile.mkdtemp(prefix="cosyfarm-test-") + "/model"
    program = os.path.join(os.environ["COSYFARM_BIN"], "cosyfarm")
    subprocess.run([program, "model", "make", MODEL, "--size", "tiny"], check=True, stdout=subprocess.DEVNULL)


def tearDownModule():
    shutil.rmtree(os.path.dirname(MODEL))


def weights(stage):
    return {tensors.our_name(k): torch.from_numpy(np.array(v, np.float64))
            for k, v in tensors.read(f"{MODEL}/{stage}.safetensors")[0].items()}


def case(name):
    """A golden case: of the repository, or of the whole set that COSYFARM_SHARED names."""
    for folder in FOLDERS:
        if os.path.exists(f"{folder}/{name}.safetensors"):
            return tensors.read(f"{folder}/{name}.safetensors")
    raise unittest.SkipTest(f"{name}: not among the committed cases; COSYFARM_SHARED names the whole set")


def cases(*names):
    """Those of names that are there, at least one."""
    there = [n for n in names if any(os.path.exists(f"{f}/{n}.safetensors") for f in FOLDERS)]
    if not there:
        raise unittest.SkipTest("none of " + ", ".join(names))
    return there


class Golden(unittest.TestCase):
    """The same numbers as the farm's code and as upstream's classes."""

    def close(self, name, got, want, bound):
        got, want = np.asarray(got, float), np.asarray(want, float)
        self.assertEqual(got.shape, want.shape, name)
        self.assertLess(np.abs(got - want).max() / np.abs(want).max(), bound, name)

    def test_llm(self):
        model = llm.Llm(6561, 832, hidden=128, layers=2, heads=2, kv_heads=1, intermediate=320).double()
        model.load_state_dict(weights("llm"))
        for name in cases("tiny-0/llm-zero-shot", "tiny-0/llm-instruct", "tiny-0/llm-cross-lingual"):
            c = case(name)[0]
            ids = llm.sequence(6561, c["prompt_text"], c["text"], c["prompt_speech_token"])
            with torch.no_grad():
                x = model.embed(torch.tensor([ids + [-1 - t for t in c["forced"]]]))
                hidden, _ = model.hidden_states(x)
                hidden = hidden[0, len(ids) - 1:]
            self.close(name, x[0, :len(ids)], c["lm_input"], 1e-7)
            self.close(name, hidden, c["hidden"], 1e-5)
            self.close(name, model.llm_decoder(hidden).detach(), c["logits"], 1e-5)

    def test_llm_steps_equal_one_pass(self):
        model = llm.Llm(100, 300, hidden=128, layers=2, heads=2, kv_heads=1, intermediate=64).double()
        ids = torch.tensor([llm.sequence(100, [1, 2], [3, 4, 5], [7, 8, 9])])
        with torch.no_grad():
            whole, _ = model.hidden_states(model.embed(ids))
            caches, parts = [[], []], []
            for first, last in ((0, 4), (4, 5), (5, ids.shape[1])):
                parts.append(model.hidden_states(model.embed(ids[:, first:last]), first, caches)[0])
        self.close("steps", torch.cat(parts, 1), whole, 1e-12)

    def test_flow(self):
        model = flow.Flow(6561, dim=128, depth=2, channels=64).double()
        state = weights("flow")
        model.load_state_dict(state)
        noise = torch.from_numpy(flow.noise_table())
        for name in cases("tiny-0/flow-offline", "tiny-0/flow-no-prompt"):
            c, meta = case(name)
            prompt = c.get("prompt_feat", np.zeros((0, 80), np.float32))
            got = flow.solve(model, torch.tensor(c["token"]).long(), torch.tensor(c.get("prompt_token", np.zeros(0, np.int32))).long(),
                             torch.tensor(prompt).double(), torch.tensor(c["embedding"]).double(), noise, meta["streaming"] == "1")
            self.close(name, got.T, c["mel"], 3e-5)

    def test_flow_look_ahead_and_mask(self):
        c, meta = case("tiny-0/flow-stream-hop")
        self.assertEqual((meta["streaming"], meta["finalize"]), ("1", "0"))
        model = flow.Flow(6561, dim=128, depth=2, channels=64).double()
        model.load_state_dict(weights("flow"))
        codes = torch.tensor(np.concatenate([c["prompt_token"], c["token"]])).long()[None]
        with torch.no_grad():
            mu, spk = model.front(codes[:, :-3], torch.tensor(c["embedding"]).double()[None], codes[:, -3:])
            self.close("mu", mu[0].T, c["mu"], 1e-5)
            self.close("spk", spk[0], c["spk"], 1e-5)
            if "v1_cond" in c:
                x = torch.from_numpy(flow.noise_table())[:, :mu.shape[1]].T[None]
                cond = torch.zeros_like(mu)
                cond[0, :len(c["prompt_feat"])] = torch.tensor(c["prompt_feat"])
                v = model.velocity(x, cond, mu, spk, torch.zeros(1).double(), flow.mask_of(mu.shape[1], True))
                self.close("v1", v[0].T, c["v1_cond"], 2e-5)

    def test_hift(self):
        model = hift.Hift(64, 32).double()
        model.load_state_dict(weights("hift"))
        model.eval()
        table = hift.uniform_table(480 * 120)
        for name in cases("tiny-0/hift-final", "tiny-0/hift-one-frame"):
            c = case(name)[0]
            audio, f0 = hift.speak(model, c["mel"].T.astype(np.float64), table)
            line = model.m_source["l_linear"]
            source = hift.source_of(c["f0"], line.weight[0].detach().numpy(), line.bias[0].item(), table)
            self.close(name + " f0", f0, c["f0"], 1e-6)
            self.assertLess(np.abs(source - c["source"]).max(), 1e-6)
            noise = ((audio - c["audio"]) ** 2).sum() / (c["audio"].astype(float) ** 2).sum()
            self.assertLess(10 * np.log10(noise), -80, name)

    def test_snake_gradient(self):
        snake = hift.Snake(3).double()
        x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
        self.assertTrue(torch.autograd.gradcheck(lambda a, b: hift._Snake.apply(a, b.view(-1, 1)), (x, snake.alpha)))

    def test_names_go_and_come_back(self):
        for name in hift.Hift(64, 32).state_dict():
            self.assertEqual(tensors.our_name(tensors.upstream_name(name)), name)


class Parts(unittest.TestCase):
    def test_words_are_one_token(self):
        tokenizer = Tokenizer.of_words(WORDS)
        for text in ("The captain carries a beautiful guitar.", "Monday, I will sing."):
            ids, places = tokenizer.encode(text)
            self.assertEqual(len(ids), len(text.split(" ")) * 2 - 1 + sum(c in ".,?!" for c in text), text)
            self.assertEqual(places[0], 0)
        self.assertEqual(tokenizer.encode(PREFIX)[0][-1], tokenizer.end_of_prompt)

    def test_tokenizer_is_the_farms(self):
        tokenizer = Tokenizer.of_words(WORDS)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["cp", "-r", MODEL + "/.", folder], check=True)
            tokenizer.save(folder + "/CosyVoice-BlankEN")
            for text in ("The captain carries a beautiful guitar.", "Zebras don't read 21 e-mails!"):
                done = subprocess.run([os.path.join(os.environ["COSYFARM_BIN"], "cosyfarm"), "text", "-m", folder, "--raw", "--json", text],
                                      capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(json.loads(done.stdout.splitlines()[0])["ids"], [tokenizer.encode(text)[0]], text)

    def test_no_code_repeats_in_the_window(self):
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((5, 162)).astype(np.float32)
        codes = tokens.Codes(centres, np.full(5, tokens.VARIANTS_MAX))
        features = np.repeat(rng.standard_normal((3, 2, 81)), [30, 12, 30], 0).astype(np.float32)
        got = codes.encode(features)
        for i, c in enumerate(got):
            self.assertNotIn(c, got[max(0, i - tokens.WINDOW):i])

    def test_mel_is_the_farms(self):
        c, _ = case("voice/s16-24k-mono")
        self.assertLess(np.abs(mel.log_mel(c["wave_24k"].reshape(-1)) - c["prompt_feat"]).max(), 2e-3)

    @staticmethod
    def recording(words, phones, samples=40000):
        return flite.Speech(np.zeros(samples, np.float32), np.full(samples // flite.FRAME, 100, np.float32), words, phones)

    def test_words_begin_on_the_grid(self):
        speech = self.recording([(0, 1000), (4, 5000), (8, 5100), (9, 20000)], [("pau", 1000), ("a", 28720), ("pau", 39000)])
        knots = vocoder.word_grid(speech)
        self.assertEqual(list(knots[0]), sorted(set(knots[0])))
        self.assertEqual(list(knots[1]), [1000, 5000, 20000, 30000])

    def test_a_text_is_one_recording(self):
        try:
            speaker = flite.Speaker()
        except OSError as e:
            raise unittest.SkipTest(f"libflite1 is not installed: {e}")
        first = speaker.say("25 cats and 25 dogs, it's true.", "rms")
        other = speaker.say("25 cats and 25 dogs, it's true.", "slt")
        again = speaker.say("25 cats and 25 dogs, it's true.", "rms")
        self.assertTrue((first.wave == again.wave).all() and (first.pitch_hz == again.pitch_hz).all())
        self.assertEqual([name for name, _ in first.phones], [name for name, _ in other.phones])
        self.assertEqual([offset for offset, _ in first.words], [0, 3, 8, 12, 15, 21, 26])
        self.assertTrue(all(a < b for (_, a), (_, b) in zip(first.words, first.words[1:])))
        self.assertTrue(100 < first.words[0][1] < first.end <= len(first.wave))
        vocoder.analyse(first, np.array([0, len(first.wave)]))     # both ends

    def test_another_speaker_keeps_time(self):
        first = self.recording([(0, 1000), (2, 9000)], [("pau", 1000), ("a", 5000), ("b", 9000), ("c", 15000), ("pau", 20000)])
        other = self.recording([(0, 2000), (2, 6000)], [("pau", 2000), ("a", 3000), ("b", 6000), ("c", 19000), ("pau", 21000)])
        knots = vocoder.word_grid(first)
        tokens_at, places = vocoder.laid_over(knots, first, other)
        self.assertEqual(tokens_at[0], 0)
        self.assertEqual(tokens_at[-1], knots[0][-1])
        for (_, sample), (_, own) in list(zip(first.phones, other.phones))[:4]:
            token = np.interp(sample, knots[1], knots[0])
            self.assertAlmostEqual(np.interp(token, tokens_at, places), own)
        other.phones[1] = ("x", 3000)
        with self.assertRaises(RuntimeError):
            vocoder.laid_over(knots, first, other)

    def test_analysis_finds_envelope_and_periodicity(self):
        """A pulse train at 112.5 Hz through one resonance: its peak, and all of its power is periodic; then noise."""
        n = np.arange(16000)
        pulses = np.zeros(16000)
        pulses[np.rint(np.arange(0, 16000, 16000 / 112.5)).astype(int)] = 1
        ring = 0.985 ** n[:800] * np.cos(2 * np.pi * 1500 / 16000 * n[:800])
        speech = self.recording([], [("a", 16000)], 16000)
        speech.pitch_hz[:] = 112.5
        speech.wave = (0.1 * np.convolve(pulses, ring)[:16000]).astype(np.float32)
        envelope, periodicity = vocoder.analyse(speech, np.arange(4000, 12000, 333.3))
        self.assertLess(abs(envelope.mean(0).argmax() * 16000 / 1024 - 1500), 60)
        self.assertGreater(periodicity[:, :2].min(), 0.85)
        self.assertLess(np.ptp(envelope[:, 96]), 0.5)              # the envelope does not move with the pulses
        speech.wave = (0.05 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
        self.assertLess(abs(vocoder.analyse(speech, np.arange(4000, 12000, 33.3))[1].mean()), 0.1)

    def test_error_rate(self):
        self.assertEqual(evaluate.edits("a b c".split(), "a x c d".split()), 2)
        self.assertEqual(evaluate.edits([], ["a"]), 1)

    def test_periodicity(self):
        t = np.arange(24000) / 24000
        self.assertGreater(evaluate.periodicity(np.sin(2 * np.pi * 112.5 * t), 112.5), 0.99)
        self.assertLess(evaluate.periodicity(np.random.default_rng(0).standard_normal(24000), 112.5), 0.3)

    def test_sentences_keep_the_test_apart(self):
        training = set(sentences.training(500, WORDS, 1))
        self.assertFalse(training & set(sentences.test(50, sentences.TRAINING, 1)))
        known = set(WORDS)
        for text in training | set(sentences.test(50, sentences.OTHER_SHAPES, 1)):
            self.assertLessEqual(set(evaluate.words_of(text)), known, text)

    def test_a_training_that_blows_up_goes_back(self):
        with tempfile.TemporaryDirectory() as folder:
            model = torch.nn.Linear(1, 1)
            loop = train.Loop(folder, "toy", model, 10, 1e-3)
            for _ in range(120):
                loop.update(model.weight.square().sum() * 0 + 1.0, {})
            good = model.weight.item()
            with torch.no_grad():
                model.weight.fill_(1e6)
            for _ in range(60):
                loop.update(model.weight.square().sum() * 0 + (5.0 if model.weight.item() > 10 else 1.0), {})
            self.assertAlmostEqual(model.weight.item(), good, places=2)
            self.assertEqual(loop.rate, 5e-4)
            loop.save()
            again = train.Loop(folder, "toy", torch.nn.Linear(1, 1), 10, 1e-3)
            self.assertEqual((again.step, again.rate), (loop.step, 5e-4))
            self.assertEqual(again.model.weight.item(), model.weight.item())

    def test_joined_sentences(self):
        """Words count on, and codes that both sentences have near the seam do not repeat."""
        words, codes = Tokenizer.of_words(WORDS), tokens.Codes(np.zeros((9, 162)), np.full(9, 2, np.int32))
        first = train_llm.Utterance("Thank you.", np.array([2, 0]), np.array([0, 6]), words)
        second = train_llm.Utterance("We wait.", np.array([0, 4]), np.array([0, 3]), words)
        both = train_llm.Utterance.joined([first, second], 7, codes)
        self.assertEqual(both.text, "Thank you. We wait.")
        self.assertEqual(list(both.ids), [*first.ids, 7, *second.ids])
        self.assertEqual(both.codes.tolist(), [2, 0, 1, 4])
        self.assertEqual(both.code_word.tolist(), [0, 1, 2, 3])
        self.assertEqual(both.id_word[len(first.ids)], 2)          # the space belongs to the word behind it
        self.assertEqual(both.id_word[-1], 3)
        self.assertEqual(len(first.codes), 2)                      # the parts stay as they were

    def test_a_step_of_each_training(self):
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        model = llm.Llm(50, 100, hidden=128, layers=3, heads=2, kv_heads=1, intermediate=64)
        utterance = train_llm.Utterance.__new__(train_llm.Utterance)
        utterance.text, utterance.ids, utterance.id_word = "Go on.", [1, 2, 3], np.array([0, 1, 1])
        utterance.codes, utterance.code_word = np.arange(12), np.repeat([0, 1], 6)
        codes, pool = tokens.Codes(np.zeros((50, 162)), np.ones(50, np.int32)), []
        batch = train_llm.batch_of(lambda: train_llm.example([utterance], [utterance], [5, 6], 4, codes, rng), rng, pool)
        loss, figures = train_llm.loss_of(model, model.hidden_states, *batch)
        loss.backward()
        self.assertTrue(np.isfinite(loss.item()) and 0 < figures["look"] < 1)
        by_voice = [[(np.arange(40), np.zeros((80, 80), np.float32), train_flow.speaker("a"))]]
        model = flow.Flow(50, dim=64, depth=1, channels=16)
        loss, _ = train_flow.loss_of(model, train_flow.batch_of(by_voice, rng), rng, generator)
        loss.backward()
        self.assertTrue(np.isfinite(loss.item()))


if __name__ == "__main__":
    unittest.main(verbosity=1)
