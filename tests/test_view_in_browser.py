"""The page of a run in a browser, where there is one: what pointer and keys do, on large and small screens."""

import shutil

import pytest
import torch
from pages import own_model, rounded, trained
from torch import nn

from lae_fast import VAE, models
from lae_fast.data import Split
from lae_fast.models.likelihood import Bernoulli, Gaussian
from lae_fast.view import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "first <run>")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright here, which drives a browser")
    with driver.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def opened(browser, run):
    """Opens a page at a window's size, and has seen no word on the console in the end."""
    said, pages = [], []

    def open_page(folder=run, width=1280, height=900, **options):
        tab = browser.new_page(
            viewport={"width": width, "height": height}, reduced_motion="reduce", **options
        )
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        tab.goto((folder / "view.html").as_uri())
        tab.wait_for_function("originals.complete && due === 0")
        pages.append(tab)
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert said == []


def settle(tab):
    tab.wait_for_function("due === 0")


def picture(tab, name="picture"):
    return tab.evaluate(f"byId('{name}').toDataURL()")


def z_of(tab):
    return torch.tensor(tab.evaluate("state.z"))


@pytest.mark.slow
def test_a_browser_decodes_as_pytorch_does(opened, run):
    tab, model = opened(), rounded(models.load(run / "best.safetensors"))
    z = 2 * torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    found = torch.tensor(tab.evaluate("(all) => all.map((z) => [...decode(z)])", z.tolist()))
    torch.testing.assert_close(found, model.decode(z).detach().flatten(1), rtol=0, atol=1e-5)
    grey = "[...byId('picture').getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 === 0)"
    shown = torch.tensor(tab.evaluate(grey)) / 255
    torch.testing.assert_close(
        shown, model.decode(z_of(tab)[None]).detach().flatten(), rtol=0, atol=0.51 / 255
    )


@pytest.mark.slow
def test_sliders_and_buttons_change_the_picture(opened):
    tab = opened()
    before, z = picture(tab), z_of(tab)
    tab.get_by_role("slider", name="z₂").focus()
    for _ in range(5):
        tab.keyboard.press("PageUp")
    settle(tab)
    moved = z_of(tab) - z
    assert moved[1] > 0.1
    assert moved[[0, 2]].tolist() == [0, 0]
    assert picture(tab) != before
    assert tab.inner_text("#caption") == "no test image"
    tab.get_by_text("All zero").click()
    settle(tab)
    assert z_of(tab).tolist() == [0, 0, 0]
    tab.get_by_text("Draw from the prior").click()
    settle(tab)
    assert z_of(tab).abs().min() > 0
    samples = tab.get_attribute("#samples img", "src")
    tab.get_by_text("Draw again").click()
    assert tab.get_attribute("#samples img", "src") != samples


def dot_of(tab, code):
    """Where on the screen a code's dot is."""
    box = tab.locator("#plane .dot").nth(code).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.slow
def test_a_dot_shows_its_code_and_a_drag_interpolates(opened):
    tab = opened()
    codes = torch.tensor(tab.evaluate("page.codes"))
    tab.locator("#plane").scroll_into_view_if_needed()
    low, high = (int(v) for v in (codes @ torch.tensor(tab.evaluate("axes[3].direction"))).argsort()[[0, -1]])
    before = picture(tab, "original")
    tab.mouse.click(*dot_of(tab, low))
    settle(tab)
    assert torch.equal(z_of(tab), codes[low])
    assert picture(tab, "original") != before
    assert tab.inner_text("#caption") == f"test image {low + 1}, class {tab.evaluate('page.labels')[low]}"
    tab.mouse.move(*dot_of(tab, low))
    tab.mouse.down()
    tab.mouse.move(*dot_of(tab, high), steps=4)
    tab.mouse.up()
    settle(tab)
    assert tab.evaluate("[state.a, state.b]") == [low, high]
    tab.locator("#between").fill("0.25")
    settle(tab)
    torch.testing.assert_close(z_of(tab), codes[low] + 0.25 * (codes[high] - codes[low]))
    third = tab.evaluate("(i) => byId('strip').children[i].toDataURL()", 2)  # of nine: a quarter of the way
    assert third == picture(tab)


@pytest.mark.slow
def test_the_keyboard_alone_reaches_everything(opened):
    tab = opened()
    tab.locator("#samples").focus()
    for key in ("ArrowRight", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[9]")
    tab.locator("#plane").focus()
    tab.keyboard.press("ArrowRight")
    settle(tab)
    assert tab.get_attribute("#between", "aria-valuetext") == "not on the way from A to B"
    first = tab.evaluate("state.code")
    tab.keyboard.press("a")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("b")
    settle(tab)
    assert tab.evaluate("[state.a, state.b]") == [first, tab.evaluate("state.code")]
    assert first != tab.evaluate("state.code")
    assert tab.inner_text("#said").endswith("is B")
    stops = set()
    tab.evaluate("document.activeElement.blur()")
    for _ in range(60):
        tab.keyboard.press("Tab")
        stops.add(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
    wanted = {"samples", "again", "reconstructions", "across", "up", "plane", "INPUT", "random", "origin"}
    assert wanted | {"between", "mark-a", "mark-b", "SUMMARY"} <= stops


@pytest.mark.slow
def test_the_first_click_on_a_picture_chooses_it(opened):
    """The grid has no focus yet, its first row is above the window, and nothing may move under the pointer."""
    tab = opened(width=1000, height=500)
    tab.evaluate("scrollTo(0, byId('samples').children[8].getBoundingClientRect().top + scrollY)")
    box = tab.locator("#samples > *").nth(20).bounding_box()
    tab.mouse.move(box["x"] + 3, box["y"] + 3)
    before = tab.evaluate("scrollY")
    tab.mouse.down()
    tab.wait_for_timeout(50)
    assert tab.evaluate("scrollY") == before > 0
    tab.mouse.up()
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[20]")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    settle(tab)
    assert tab.evaluate("state.z") == tab.evaluate("page.samples[21]")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 200, 2), (1, 2, 200)])
def test_long_thin_images_stay_on_the_screen(shape, opened, tmp_path):
    model = own_model(nn.Linear(3, 400), Bernoulli(), shape)
    page.write(tmp_path, model, torch.rand(40, *shape))
    tab = opened(tmp_path)
    for place, least in (("#picture", 30), ("#samples img", 7), ("#strip canvas", 7)):
        box = tab.locator(place).first.bounding_box()
        assert least < box["height"] < 600


@pytest.mark.slow
def test_without_javascript_no_control_is_shown(browser, run):
    tab = browser.new_page(java_script_enabled=False)
    tab.goto((run / "view.html").as_uri())
    assert not any(control.is_visible() for control in tab.locator("button, select, input, svg").all())
    assert tab.locator("noscript p").is_visible()
    assert tab.locator("#samples img").first.is_visible()
    tab.close()


@pytest.mark.slow
def test_one_class_alone_and_other_axes(opened):
    tab = opened()
    tab.get_by_role("button", name="3", exact=True).click()
    labels = tab.evaluate("page.labels")
    assert tab.locator(".dot.faded").count() == sum(label != 3 for label in labels)
    tab.locator("#plane").click()
    settle(tab)
    assert labels[tab.evaluate("state.code")] == 3
    before = dot_of(tab, 0)
    tab.select_option("#across", "0")
    settle(tab)
    assert dot_of(tab, 0) != before
    assert tab.evaluate("page.axes[0].name") in tab.inner_text("#shown").replace("₁", "1").replace(
        "₂", "2"
    ).replace("₃", "3")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_a_narrow_screen_needs_no_sideways_scroll(opened, scheme):
    tab = opened(width=360, height=740, color_scheme=scheme)
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 250, 248)") == (scheme == "light")


@pytest.mark.slow
def test_every_control_has_a_name(opened):
    tab = opened()
    nameless = tab.evaluate(
        "[...document.querySelectorAll('button, select, input, [tabindex], [role=img]')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent).trim()).map((e) => e.outerHTML)"
    )
    assert nameless == []


def own_page(run, folder, model, images):
    """The page of another model, with the records of a run that has no scores yet."""
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, folder)
    page.write(folder, model, Split(images, None))


@pytest.mark.slow
def test_classes_have_their_names(opened, run, tmp_path):
    model = own_model(nn.Linear(3, 12), Bernoulli(), (12,))
    test = Split(torch.rand(6, 12), torch.tensor([0, 2, 2, 2, 2, 2]))
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run / name, tmp_path)
    page.write(tmp_path, model, test, classes=("blue", "green", "<b>red</b>"))
    tab = opened(tmp_path)
    assert tab.locator("#legend button").all_inner_texts() == ["blue", "<b>red</b>"]
    codes = torch.tensor(tab.evaluate("page.codes"))
    tab.locator("#plane").scroll_into_view_if_needed()
    along = codes @ torch.tensor(tab.evaluate("axes[3].direction"))
    ends = along.argsort()[[0, -1]]  # no other dot lies on these
    tab.mouse.click(*dot_of(tab, next(k for k in ends.tolist() if k != 0)))
    settle(tab)
    assert tab.inner_text("#caption").endswith("class <b>red</b>")


@pytest.mark.slow
def test_a_page_without_its_decoder_shows_everything_else(opened, run, tmp_path):
    model = own_model(nn.Sequential(nn.Linear(1, 64), nn.Softplus()), Gaussian(), (64,), nz=1)
    own_page(run, tmp_path, model, torch.randint(256, (30, 64), dtype=torch.uint8))
    tab = opened(tmp_path)
    assert "it does not know the layer Softplus" in tab.inner_text("#problem")
    assert tab.locator("#sliders").is_hidden()
    assert tab.locator("#charts svg").count() == 3
    tab.locator("#plane").click()
    settle(tab)
    assert tab.inner_text("#caption").startswith("test image ")
    assert "no scores yet" in tab.inner_text("main")


@pytest.mark.slow
def test_one_large_image(opened, run, tmp_path):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(512 * 512, 4))
    model = VAE(encoder, nn.Linear(3, 512 * 512, bias=False), Gaussian(), shape=(1, 512, 512), nz=3).eval()
    image = torch.zeros(1, 1, 512, 512)
    image[..., :256, 256:] = 1
    own_page(run, tmp_path, model, image)
    tab = opened(tmp_path)
    tab.locator("#original").scroll_into_view_if_needed()
    assert "NaN" not in tab.inner_text("main")
    assert tab.evaluate("[state.a, state.b]") == [0, 0]
    size = "[byId('original').width, byId('original').height]"
    assert tab.evaluate(size) == [128, 128]
    shown = tab.evaluate("[...byId('original').getContext('2d').getImageData(0, 0, 128, 128).data]")
    assert torch.equal(torch.tensor(shown).view(128, 128, 4)[..., 0], 255 * image[0, 0, ::4, ::4].long())


@pytest.mark.slow
def test_colour_images_and_values_beyond_0_to_1(opened, run, tmp_path):
    nx = 3 * 4 * 6
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(nx, 4))
    model = VAE(encoder, nn.Linear(2, nx), Gaussian(), shape=(3, 4, 6), nz=2).eval()
    images = torch.rand(30, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 4 - 2  # -2 to 2
    own_page(run, tmp_path, model, images)
    tab = opened(tmp_path)
    low, high = images.min(), images.max()
    rgba = "(id) => [...byId(id).getContext('2d').getImageData(0, 0, 6, 4).data]"
    for name, expected in {"picture": rounded(model).decode(z_of(tab)[None]), "original": images[:1]}.items():
        shown = torch.tensor(tab.evaluate(rgba, name)).view(4, 6, 4)[..., :3].permute(2, 0, 1)
        scaled = 255 * ((expected.detach().view(3, 4, 6) - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(shown.float(), scaled, rtol=0, atol=0.51)
