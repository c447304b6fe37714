import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** HttpClient as it comes: proxy and roots from JAVA_TOOL_OPTIONS, no way to show a caller key. */
public class Plain {
    public static void main(String[] arguments) throws Exception {
        var request = HttpRequest.newBuilder(URI.create("https://api.example.com/v1"))
            .header("Authorization", "Bearer " + System.getenv("API_KEY"))
            .POST(HttpRequest.BodyPublishers.ofString("{\"question\":\"java\"}"))
            .build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}
