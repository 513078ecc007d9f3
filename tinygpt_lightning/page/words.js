// What the page says, in English and Vietnamese. {…} is filled in.

const WORDS = {
  en: {
    other: "Tiếng Việt",
    title: "A GPT that you can see whole",
    lead: "This is a real GPT-2 with {n} numbers inside. Press Write and watch it write the blue text below. Each character comes from nothing but the arithmetic on this page, and you can look at every number of it.",
    writing: "The text", text: "Text so far; choose a character to look at it", controls: "Writing",
    play: "▶ Write", pause: "❚❚ Pause", step: "One step ⏵", back: "⏴ Back", restart: "Restart",
    next: "next character", ended: "The text is complete.",
    flow: "How it chooses the next character",
    prompt: "Another beginning (characters that it knows):", unknown: "It does not know the character {c}.",
    too_long: "At most {n} characters.", empty: "At least one character.",
    recorded: "This model has {n} numbers, too many to compute in a page: what you see is its recorded pass over its own text ({t} characters, numbers rounded to 16 bits). Weights and beginning cannot be changed here.",
    box_character: "character", box_numbers: "becomes {n} numbers", box_attention: "looks back", box_moved: "attention and MLP move it to", box_scores: "{n} scores, one for each character", box_chosen: "the highest wins",
    box_place: "id {id}, place {t}", box_mostly: "most at {c}, {p}", box_off: "taken out",
    plane: "The whole computation in two pictures", plane_in_3: "The whole computation in one picture",
    plane_text: "This model is only {n} numbers wide, so every character of the text is a point that can be drawn. It starts at its embedding; attention moves it, then the MLP moves it. LayerNorm keeps one thing of it: where it lies across the stripes. The stripe that it ends in is the next character.",
    plane_text_in_3: "This model is only {n} numbers wide, so every character of the text is a point that can be drawn, seen from the direction that LayerNorm ignores. It starts at its embedding; attention moves it, then the MLP moves it. The region that it ends in is the next character.",
    along: "Move all points:", along_0: "embedding", along_1: "+ attention", along_2: "+ MLP", along_3: "on LayerNorm's line", along_3_in_3: "as LayerNorm sees it",
    plane_caption: "The points; the stripes are the characters that would be written there.",
    plane_caption_in_3: "The points; the regions are the characters that would be written there.",
    lines_caption: "{n} straight lines over one number: each is the score of one character, and the highest line wins. The lines stand under the stripes that they win.",
    plane_label: "Path of {c} at place {t} in the plane: {path}.", lines_label: "{n} lines over the normalised number z = {z}; the highest there is {c}.",
    characters: "1 · Characters become numbers", characters_text: "The model knows {n} symbols and calls each by its number, the id. Of the text it sees only these ids. The last character is where the next one is decided; choose any other to see what happened there.",
    embedding: "2 · Each character gets a vector", embedding_text: "The token embedding (wte) says which character it is, the position embedding (wpe) where it stands. Their sum x is all that the model works with. Each column is a character of the text; orange is above zero, blue below.",
    norm: "3 · LayerNorm", norm_text: "Each column is centred on zero and brought to a common size, then stretched and shifted by two learnt vectors. So the next step sees the pattern, whatever its size.",
    attention: "4 · Attention: looking back", attention_text: "Each position asks a question (query q). Every position so far offers a key k and a content v. Where q and k point the same way, the score q·k/√d is high; softmax turns the scores into shares of 100 %.",
    arcs_text: "Where the chosen character looks: the thicker the arc, the more.", arcs_said: "Head {h} of {c} looks at {list}.",
    triangle_text: "The same for all characters: each row is a position that looks, each column one that is looked at. It is a triangle since nobody looks ahead.", head: "head {h}",
    adds: "5 · What attention adds", adds_text: "The contents v, mixed by these shares, make y; a linear layer turns y into what is added to the vector. The old vector stays in the sum: that is the residual stream.",
    mlp: "6 · MLP: each position thinks for itself", mlp_text: "Normalised again, the vector goes through {n} hidden unit(s). GELU lets positive values pass and nearly stops negative ones. What comes out is added to the stream as well.",
    final: "7 · The last LayerNorm", final_text: "The vector is normalised once more before it is compared with the characters.",
    choice: "8 · The next character", choice_text: "The score (logit) of a character is the dot product of the vector with that character's row of lm_head. Softmax makes probabilities of the scores. Greedy writing takes the likeliest; these came closest:",
    need: "What does it need?", need_text: "Take a part out and see whether the text survives. A model that only counts positions does not miss its attention; one that reads does.",
    switches: "Parts in use", part_wte: "token embedding", part_wpe: "position embedding", part_attn: "attention", part_mlp: "MLP", part_head: "head {h}",
    survives: "The text survives: every character is the same.", broken: "The text breaks: {n} of {all} characters are right.", several: "For a recorded pass, take out one part at a time.",
    learning: "Learning, replayed", learning_text: "Drag from random weights to the finished model. All pictures on this page follow. The steps are chosen so that the loss falls about equally from one to the next.",
    moment: "Moment:", moment_name: "step {step}, loss {loss}", moment_last: "finished", losses_label: "Training loss on a logarithmic scale, over steps, from {a} to {b}.", stage: "stage {n}",
    weights: "All its numbers", weights_text: "This is everything the model has learnt. Drag a cell up or down to change the number (or choose it and type), and see what the text becomes.",
    reset: "Put all numbers back", change: "Change it:",
    table: "These numbers as a table", table_att: "The attention as a table", table_hidden: "The hidden units as a table",
    place: "place", symbol: "symbol", channel: "channel", says: "It says:", close: "Close", reading: "The number under the pointer",
    number: "number", of: "{a} of {c} at place {t}", space: "space", newline: "line break", end: "end", step_name: "step",
    source: "{name} · made by tinygpt_lightning; nothing is loaded from anywhere.",
    heat_label: "{a}: {r} rows by {n} characters, from {min} to {max}. Arrow keys move through the numbers.",
  },
  vi: {
    other: "English",
    title: "Một GPT nhìn thấy trọn vẹn",
    lead: "Đây là một mô hình GPT-2 thật, bên trong có {n} con số. Hãy bấm Viết và xem nó viết phần chữ màu xanh bên dưới. Mỗi ký tự sinh ra chỉ từ các phép tính trên trang này, và bạn xem được từng con số.",
    writing: "Văn bản", text: "Văn bản đến lúc này; chọn một ký tự để xem", controls: "Điều khiển",
    play: "▶ Viết", pause: "❚❚ Dừng", step: "Một bước ⏵", back: "⏴ Lùi", restart: "Từ đầu",
    next: "ký tự tiếp theo", ended: "Văn bản đã hoàn tất.",
    flow: "Mô hình chọn ký tự tiếp theo như thế nào",
    prompt: "Một đoạn mở đầu khác (gồm các ký tự mô hình biết):", unknown: "Mô hình không biết ký tự {c}.",
    too_long: "Nhiều nhất {n} ký tự.", empty: "Ít nhất một ký tự.",
    recorded: "Mô hình này có {n} con số, quá nhiều để tính ngay trong trang: bạn đang xem lượt tính đã ghi lại trên chính văn bản của nó ({t} ký tự, số được làm tròn đến 16 bit). Ở đây không đổi được trọng số và đoạn mở đầu.",
    box_character: "ký tự", box_numbers: "thành {n} con số", box_attention: "nhìn lại phía trước", box_moved: "chú ý và MLP dời nó đến", box_scores: "{n} điểm, mỗi ký tự một điểm", box_chosen: "điểm cao nhất thắng",
    box_place: "mã {id}, vị trí {t}", box_mostly: "nhiều nhất vào {c}, {p}", box_off: "đã tắt",
    plane: "Toàn bộ phép tính trong hai hình", plane_in_3: "Toàn bộ phép tính trong một hình",
    plane_text: "Mô hình này chỉ rộng {n} con số, nên mỗi ký tự của văn bản là một điểm vẽ được. Điểm bắt đầu ở vectơ nhúng; cơ chế chú ý dời nó, rồi MLP dời nó. LayerNorm chỉ giữ lại một điều: điểm nằm ở đâu theo chiều cắt ngang các dải. Điểm dừng ở dải nào thì ký tự của dải ấy được viết tiếp.",
    plane_text_in_3: "Mô hình này chỉ rộng {n} con số, nên mỗi ký tự của văn bản là một điểm vẽ được, nhìn theo hướng mà LayerNorm bỏ qua. Điểm bắt đầu ở vectơ nhúng; cơ chế chú ý dời nó, rồi MLP dời nó. Điểm dừng ở vùng nào thì ký tự của vùng ấy được viết tiếp.",
    along: "Dời mọi điểm:", along_0: "vectơ nhúng", along_1: "+ chú ý", along_2: "+ MLP", along_3: "trên đường thẳng của LayerNorm", along_3_in_3: "như LayerNorm nhìn thấy",
    plane_caption: "Các điểm; mỗi dải là ký tự sẽ được viết nếu điểm rơi vào đó.",
    plane_caption_in_3: "Các điểm; mỗi vùng là ký tự sẽ được viết nếu điểm rơi vào đó.",
    lines_caption: "{n} đường thẳng trên một con số duy nhất: mỗi đường là điểm của một ký tự, đường cao nhất thắng. Mỗi đường nằm dưới dải mà nó thắng.",
    plane_label: "Đường đi của {c} ở vị trí {t} trên mặt phẳng: {path}.", lines_label: "{n} đường thẳng theo số đã chuẩn hoá z = {z}; cao nhất ở đó là {c}.",
    characters: "1 · Ký tự thành số", characters_text: "Mô hình biết {n} ký hiệu và gọi mỗi ký hiệu bằng một số, gọi là mã (id). Nó chỉ thấy các mã này của văn bản. Ký tự tiếp theo được quyết định tại ký tự cuối; hãy chọn một ký tự khác để xem điều đã diễn ra ở đó.",
    embedding: "2 · Mỗi ký tự nhận một vectơ", embedding_text: "Vectơ nhúng ký tự (wte) cho biết đó là ký tự nào, vectơ nhúng vị trí (wpe) cho biết nó đứng ở đâu. Tổng x của chúng là tất cả những gì mô hình dùng để tính. Mỗi cột là một ký tự của văn bản; màu cam là số dương, màu xanh là số âm.",
    norm: "3 · LayerNorm (chuẩn hoá lớp)", norm_text: "Mỗi cột được đưa về trung bình bằng 0 và cùng một độ lớn, rồi được co giãn và dời bởi hai vectơ đã học. Nhờ vậy bước sau nhìn thấy hình dạng, bất kể độ lớn.",
    attention: "4 · Chú ý: nhìn lại phía trước", attention_text: "Mỗi vị trí đặt một câu hỏi (truy vấn q). Mọi vị trí đã qua đưa ra một khoá k và một nội dung v. Khi q và k cùng hướng, điểm q·k/√d cao; softmax biến các điểm thành những phần của 100 %.",
    arcs_text: "Ký tự đang chọn nhìn vào đâu: cung càng dày là nhìn càng nhiều.", arcs_said: "Đầu {h} của {c} nhìn vào {list}.",
    triangle_text: "Cũng như vậy cho mọi ký tự: mỗi hàng là vị trí đang nhìn, mỗi cột là vị trí được nhìn. Hình là tam giác vì không vị trí nào nhìn được về sau.", head: "đầu {h}",
    adds: "5 · Chú ý thêm vào điều gì", adds_text: "Các nội dung v, trộn theo những phần ấy, tạo thành y; một lớp tuyến tính biến y thành phần được cộng vào vectơ. Vectơ cũ vẫn còn trong tổng: đó là dòng dư (residual stream).",
    mlp: "6 · MLP: mỗi vị trí tự tính", mlp_text: "Sau khi chuẩn hoá lần nữa, vectơ đi qua {n} nút ẩn. GELU cho số dương đi qua và gần như chặn số âm. Kết quả cũng được cộng vào dòng dư.",
    final: "7 · LayerNorm cuối cùng", final_text: "Vectơ được chuẩn hoá một lần nữa trước khi đem so với các ký tự.",
    choice: "8 · Ký tự tiếp theo", choice_text: "Điểm (logit) của một ký tự là tích vô hướng của vectơ với hàng của ký tự đó trong lm_head. Softmax biến các điểm thành xác suất. Cách viết tham lam lấy ký tự có xác suất lớn nhất; các ký tự bám sát nhất là:",
    need: "Mô hình cần những gì?", need_text: "Hãy tắt một bộ phận và xem văn bản có còn nguyên không. Mô hình chỉ biết đếm vị trí thì không thiếu gì khi mất cơ chế chú ý; mô hình thật sự đọc thì có.",
    switches: "Các bộ phận đang dùng", part_wte: "vectơ nhúng ký tự", part_wpe: "vectơ nhúng vị trí", part_attn: "chú ý", part_mlp: "MLP", part_head: "đầu {h}",
    survives: "Văn bản còn nguyên: mọi ký tự đều giống.", broken: "Văn bản hỏng: đúng {n} trên {all} ký tự.", several: "Với lượt tính đã ghi, mỗi lần chỉ tắt một bộ phận.",
    learning: "Xem lại quá trình học", learning_text: "Kéo từ trọng số ngẫu nhiên đến mô hình hoàn chỉnh. Mọi hình trên trang đổi theo. Các bước được chọn sao cho độ mất mát (loss) giảm gần như đều nhau từ bước này sang bước kia.",
    moment: "Thời điểm:", moment_name: "bước {step}, loss {loss}", moment_last: "hoàn chỉnh", losses_label: "Loss khi huấn luyện, thang logarit, theo bước, từ {a} đến {b}.", stage: "giai đoạn {n}",
    weights: "Tất cả các con số", weights_text: "Đây là toàn bộ những gì mô hình đã học. Kéo một ô lên hoặc xuống để đổi con số (hoặc chọn ô rồi gõ số), và xem văn bản biến thành gì.",
    reset: "Trả lại mọi con số", change: "Đổi số này:",
    table: "Các con số này dưới dạng bảng", table_att: "Chú ý dưới dạng bảng", table_hidden: "Các nút ẩn dưới dạng bảng",
    place: "vị trí", symbol: "ký hiệu", channel: "kênh", says: "Mô hình viết:", close: "Đóng", reading: "Con số dưới con trỏ",
    number: "số", of: "{a} của {c} ở vị trí {t}", space: "dấu cách", newline: "xuống dòng", end: "kết thúc", step_name: "bước",
    source: "{name} · tạo bởi tinygpt_lightning; trang không tải gì từ nơi khác.",
    heat_label: "{a}: {r} hàng, {n} ký tự, từ {min} đến {max}. Dùng phím mũi tên để đi qua các con số.",
  },
};

let language = "en";

/** The words for `key` in the chosen language, with `{name}` replaced by `values.name`. */
function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** A number as the page shows it: three significant digits, or so. */
function shown(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 100000)) return value.toExponential(2).replace("-", "−").replace("e−", "e−");
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3).replace("-", "−");
}

/** A symbol as the page shows it, also where it is nothing to see. */
function visible(symbol) {
  if (symbol === " ") return "␣";
  if (symbol === "\n") return "↵";
  return /^[\p{C}\p{Z}]$/u.test(symbol) ? "·" : symbol;
}

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;
